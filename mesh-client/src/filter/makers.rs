//! How a configuration becomes a filter that runs.
//!
//! A new filter of this library is one arm here and one file beside it. This file does NOT decide when filters are made.

use super::{Filter, FilterRequest, Reply, Verdict, fault::FaultFilter};
use http::StatusCode;
use mesh_xds::resource::{CustomFilter, FilterConfig, FilterType, HttpFilterConfig};
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

/// What a program has registered, by type.
#[derive(Default)]
pub(crate) struct Makers {
    custom: Vec<(FilterType, Box<Make>)>,
}

type Make = dyn Fn(&CustomFilter) -> Option<Arc<dyn Filter>> + Send + Sync;

impl Makers {
    /// Adds a type; the last one of a type URL counts.
    pub(crate) fn add<C: FilterConfig, F: Filter>(&mut self, make: impl Fn(&C) -> F + Send + Sync + 'static) {
        let kind = FilterType::of::<C>();
        self.custom.retain(|(other, _)| other.type_url() != kind.type_url());
        self.custom.push((kind, Box::new(move |custom| Some(Arc::new(make(custom.config()?))))));
    }

    /// The filter of an instance; `None` when nothing can ever come of it.
    pub(super) fn make(&self, name: &str, config: &HttpFilterConfig) -> Option<Arc<dyn Filter>> {
        match config {
            HttpFilterConfig::Fault(fault) => FaultFilter::new(fault).map(|filter| Arc::new(filter) as _),
            HttpFilterConfig::Custom(custom) => Some(self.custom(custom).unwrap_or_else(|| {
                tracing::error!(filter = name, kind = custom.kind().type_url(), "an HTTP filter could not be made");
                Arc::new(Broken(format!("HTTP filter {name:?} could not be made")))
            })),
            other => {
                // The enum may grow in mesh-xds first: what nobody here can run must not be passed over in silence.
                tracing::error!(filter = name, config = ?other, "an HTTP filter is not known");
                Some(Arc::new(Broken(format!("HTTP filter {name:?} is not known"))))
            }
        }
    }

    fn custom(&self, custom: &CustomFilter) -> Option<Arc<dyn Filter>> {
        let (_, make) = self.custom.iter().find(|(kind, _)| *kind == custom.kind())?;
        // User code, called from the task that everybody's configuration passes.
        catch_unwind(AssertUnwindSafe(|| make(custom))).ok()?
    }
}

impl fmt::Debug for Makers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.custom.iter().map(|(kind, _)| kind)).finish()
    }
}

/// In the place of a filter that could not be made. It may have been there to keep calls out, so it lets none pass.
struct Broken(String);

impl Filter for Broken {
    fn request<'a>(&'a self, _: &'a mut FilterRequest<'_>) -> Verdict<'a> {
        Verdict::Reply(Reply::new(StatusCode::INTERNAL_SERVER_ERROR, self.0.clone()).with_grpc_status(INTERNAL))
    }
}

const INTERNAL: u8 = 13;
