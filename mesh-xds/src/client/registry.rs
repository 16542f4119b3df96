//! One client per control plane, node and process, and the thread they all live on.
//!
//! The only global state of this crate. It holds clients weakly: it keeps none alive.

use super::{Inner, XdsClient};
use crate::Bootstrap;
use std::{
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
    thread,
};
use tokio::runtime::{Builder, Handle};

static CLIENTS: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

/// Lives as long as the process.
static RUNTIME: LazyLock<Handle> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime for the xDS client: {error}"));
    let handle = runtime.handle().clone();
    let thread = thread::Builder::new().name("mesh-xds".to_owned());
    let spawned = thread.spawn(move || runtime.block_on(std::future::pending::<()>()));
    spawned.unwrap_or_else(|error| panic!("no thread for the xDS client: {error}"));
    handle
});

/// The living client with an equal bootstrap, or a new one.
pub(super) fn client(bootstrap: Arc<Bootstrap>) -> XdsClient {
    let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
    // A client whose driver is gone, with the runtime it ran on, is no use to anybody new.
    clients.retain(|client| client.upgrade().is_some_and(|client| !client.commands.is_closed()));
    let living = clients.iter().filter_map(Weak::upgrade).find(|client| client.bootstrap.is_same_client(&bootstrap));
    if let Some(living) = living {
        return XdsClient(living);
    }
    let client = XdsClient::connect_on(&RUNTIME, bootstrap);
    clients.push(Arc::downgrade(&client.0));
    client
}

/// Every living client.
pub(super) fn clients() -> Vec<XdsClient> {
    let clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
    clients.iter().filter_map(Weak::upgrade).map(XdsClient).collect()
}
