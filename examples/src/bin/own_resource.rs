//! A resource type of your own over xDS: quotas, sent by a control plane and watched with mesh-xds alone.
//!
//! ```sh
//! cargo run -p examples --bin own_resource
//! ```
//!
//! Both ends are in this program. It does NOT make calls.

use mesh_xds::{
    Bootstrap, ResourceUpdate, XdsClient,
    control_plane::{ControlPlane, Resources, proto::google::protobuf::Any},
    resource::{Invalid, ResourceType},
};
use std::error::Error;

/// How many calls a service may make. On the wire: `name=limit`; a protobuf would do as well.
#[derive(Debug, PartialEq)]
struct Quota {
    name: String,
    limit: u32,
}

impl ResourceType for Quota {
    const TYPE_URL: &'static str = "type.googleapis.com/example.Quota";

    fn name(bytes: &[u8]) -> Option<String> {
        std::str::from_utf8(bytes).ok()?.split_once('=').map(|(name, _)| name.to_owned())
    }

    fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        let name = Self::name(bytes).ok_or_else(|| Invalid::new("not name=limit"))?;
        let limit = std::str::from_utf8(&bytes[name.len() + 1..]).ok().and_then(|limit| limit.parse().ok());
        Ok(Self { name, limit: limit.ok_or_else(|| Invalid::new("not a number").within("limit"))? })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let control_plane = ControlPlane::new();
    let bootstrap = Bootstrap::builder().node_id("example").server(control_plane.in_process()).build()?;
    let mut watch = XdsClient::connect(bootstrap).watch_resource::<Quota>("shop");
    // The third is refused: what was good goes on, and the error is shown beside it.
    for text in ["shop=10", "shop=20", "shop=many"] {
        control_plane.set_unchecked(quota(text));
        match watch.changed().await? {
            ResourceUpdate::Ready { value, error: None } => {
                println!("{text}: {} may make {} calls", value.name, value.limit)
            }
            ResourceUpdate::Ready { value, error: Some(why) } => println!("{text}: still {}: {why}", value.limit),
            ResourceUpdate::Failed(why) => println!("{text}: {why}"),
            ResourceUpdate::Pending => {}
        }
    }
    Ok(())
}

fn quota(text: &str) -> Resources {
    let mut resources = Resources::default();
    let value = text.as_bytes().to_vec();
    resources.insert_raw("shop", Any { type_url: Quota::TYPE_URL.to_owned(), value });
    resources
}
