//! A request's head on its way out. Who sends it keeps its headers, so that a list of them stays here, from which they are put
//! together again for whoever asks: another attempt, or a retry policy that looks at them.
//!
//! A list is half the price of a second map. It does NOT know attempts.

use http::{HeaderMap, HeaderName, HeaderValue, Request, request};
use std::mem;

/// A request's head, which can be sent more than once.
#[derive(Debug)]
pub(crate) struct Head {
    parts: request::Parts,
    /// What the map in `parts` has held, if it was given away.
    given: Option<Vec<(HeaderName, HeaderValue)>>,
    /// Whether the map stays.
    stays: bool,
}

impl Head {
    pub(crate) fn new(parts: request::Parts) -> Self {
        Self { parts, given: None, stays: false }
    }

    /// Somebody will ask for all of it when it was sent, too: then a second map is cheaper.
    pub(crate) fn stay(&mut self) {
        self.stays = true;
    }

    /// The whole of it.
    pub(crate) fn parts(&mut self) -> &mut request::Parts {
        if let Some(fields) = self.given.take() {
            self.parts.headers = HeaderMap::with_capacity(fields.len());
            for (name, value) in fields {
                self.parts.headers.append(name, value);
            }
        }
        &mut self.parts
    }

    /// The request to be sent.
    pub(crate) fn give(&mut self) -> Request<()> {
        let stays = self.stays;
        let parts = self.parts();
        let mut request = Request::new(());
        request.method_mut().clone_from(&parts.method);
        request.uri_mut().clone_from(&parts.uri);
        if stays {
            request.headers_mut().clone_from(&parts.headers);
        } else {
            let fields = parts.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
            mem::swap(request.headers_mut(), &mut parts.headers);
            self.given = Some(fields);
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use super::Head;
    use http::Request;

    #[test]
    fn a_head_that_was_given_away_is_whole_again_for_who_asks() {
        for stays in [false, true] {
            let request = Request::put("http://shop/cart?item=7").header("b", "1").header("a", "2").header("b", "3");
            let (parts, ()) = request.body(()).expect("a valid request").into_parts();
            let mut head = Head::new(parts.clone());
            if stays {
                head.stay();
            }
            for _ in 0..2 {
                let sent = head.give();
                assert_eq!((sent.method(), sent.uri(), sent.headers()), (&parts.method, &parts.uri, &parts.headers));
                assert!(sent.headers().iter().eq(parts.headers.iter()), "in the same order");
            }
            assert!(head.parts().headers.iter().eq(parts.headers.iter()));
            head.parts().headers.insert("c", "4".parse().expect("a valid value"));
            assert_eq!(head.give().headers().len(), 4, "what was changed is sent");
        }
    }
}
