//! Writes `mesh-xds/src/control_plane/descriptors.bin`: how protobuf-JSON maps to the resources a mesh is made of.
//!
//! The loader of the control plane needs descriptors at run time, and prost's generated code has none. They are
//! compiled from the protos inside the `envoy-types` crate, whose generated types the rest of mesh-xds uses, and
//! committed, because the result changes only when that crate does: `cargo run` here after an update of it, with the
//! crate's `proto` folder as the argument. It lives outside the workspace so that a protobuf compiler is NOT part of
//! anybody's build.
//!
//! ```text
//! cargo run -- ~/.cargo/registry/src/*/envoy-types-0.7.7/proto ../../src/control_plane/descriptors.bin
//! ```

use prost::Message;
use prost_types::FileDescriptorSet;
use std::{collections::BTreeSet, env, error::Error, fs, path::Path};

/// Folders inside `proto` that imports are looked up in.
const ROOTS: [&str; 9] = [
    "data-plane-api",
    "googleapis",
    "xds",
    "protoc-gen-validate",
    "cel-spec/proto",
    "client_model",
    "opentelemetry-proto",
    "ratelimit",
    "",
];

/// Everything that may appear in a resource, directly or inside an `Any`, is below these folders or imported there.
/// It is Envoy's whole API: stripped as below it is half a megabyte, from which a debug build makes the loader's pool
/// in 44 to 85 ms, once per process.
const FOLDERS: [&str; 5] = ["envoy/config", "envoy/extensions", "envoy/service/discovery/v3", "envoy/type", "xds/type"];

/// Its import `common.dynamic_forward_proxy...` is relative, and protox looks for it in the wrong `common`.
const LEFT_OUT: &str = "envoy/extensions/clusters/dynamic_forward_proxy/v3/cluster.proto";

fn main() -> Result<(), Box<dyn Error>> {
    let [proto, output] = <[String; 2]>::try_from(env::args().skip(1).collect::<Vec<_>>())
        .map_err(|_| "usage: mesh-xds-descriptors PROTO_FOLDER OUTPUT_FILE")?;
    let proto = Path::new(&proto);
    let roots: Vec<_> = ROOTS.iter().map(|root| proto.join(root)).collect();
    let mut files = vec![];
    for wanted in FOLDERS {
        let root = roots.iter().find(|root| root.join(wanted).exists()).ok_or(format!("{wanted} is not there"))?;
        collect(root, wanted, &mut files)?;
    }
    files.retain(|file| file != LEFT_OUT);
    files.sort();
    // One compiler per file: a relative name (`common.ratelimit.v3.X`) may resolve only through the file's own
    // imports, and protox looks at everything that it has opened. Imports come first in each set, as pools want them.
    let mut set = FileDescriptorSet::default();
    let mut seen = BTreeSet::new();
    for file in &files {
        let mut compiler = protox::Compiler::new(&roots)?;
        compiler.include_imports(true).include_source_info(false).open_file(file)?;
        set.file
            .extend(compiler.file_descriptor_set().file.into_iter().filter(|file| seen.insert(file.name().to_owned())));
    }
    // Validation rules, versioning annotations and the like are options: the JSON mapping needs none of them except
    // `map_entry` and `allow_alias`, and they are a good third of the size.
    for file in &mut set.file {
        file.options = None;
        file.service.clear();
        file.message_type.iter_mut().for_each(strip_message);
        file.enum_type.iter_mut().for_each(strip_enum);
        file.extension.clear();
    }
    let bytes = set.encode_to_vec();
    println!("{} files, {} bytes", set.file.len(), bytes.len());
    fs::write(output, bytes)?;
    Ok(())
}

fn collect(root: &Path, wanted: &str, files: &mut Vec<String>) -> Result<(), Box<dyn Error>> {
    let path = root.join(wanted);
    if path.is_file() {
        files.extend(wanted.ends_with(".proto").then(|| wanted.to_owned()));
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name().into_string().map_err(|name| format!("{} is not UTF-8", name.display()))?;
        collect(root, &format!("{wanted}/{name}"), files)?;
    }
    Ok(())
}

fn strip_message(message: &mut prost_types::DescriptorProto) {
    let is_map_entry = message.options.as_ref().is_some_and(|options| options.map_entry());
    message.options = is_map_entry.then(|| prost_types::MessageOptions { map_entry: Some(true), ..Default::default() });
    message.field.iter_mut().for_each(|field| field.options = None);
    message.oneof_decl.iter_mut().for_each(|oneof| oneof.options = None);
    message.nested_type.iter_mut().for_each(strip_message);
    message.enum_type.iter_mut().for_each(strip_enum);
    message.extension.clear();
}

fn strip_enum(of: &mut prost_types::EnumDescriptorProto) {
    let has_aliases = of.options.as_ref().is_some_and(|options| options.allow_alias());
    of.options = has_aliases.then(|| prost_types::EnumOptions { allow_alias: Some(true), ..Default::default() });
    of.value.iter_mut().for_each(|value| value.options = None);
}
