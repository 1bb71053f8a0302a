//! STATUS: whether ADD would be served.
//!
//! CRI-O asks twice a second until the answer is yes, and containerd tells the kubelet of it every few seconds. So
//! it only reads what the agent knows already.

use weave_proto::local::cni::{ErrorCode, Refusal};

use super::{Addresses, Cni, Ports};

impl<A: Addresses, P: Ports> Cni<A, P> {
    /// Whether ADD would be served.
    ///
    /// # Errors
    /// Code 50 with the reason.
    pub fn status(&self) -> Result<(), Refusal> {
        let not_yet = |why: String| Refusal::new(ErrorCode::NotAvailable, why);
        let facts = self.ports.facts().map_err(not_yet)?;
        if facts.address.is_none() {
            return Err(not_yet(format!("the bridge {} has no address yet", facts.bridge)));
        }
        self.addresses.ready().map_err(not_yet)
    }
}
