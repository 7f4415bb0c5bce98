//! (to come)

use std::path::Path;

/// Placeholder: the data plane's own module replaces this file.
pub fn detach(pin: &Path) -> anyhow::Result<Vec<String>> {
    anyhow::bail!("{}: there is no data plane yet", pin.display())
}

pub mod decap {
    use std::net::IpAddr;

    use crate::model::XdpMode;

    /// Placeholder: the data plane's own module replaces this file.
    pub async fn run(interface: &str, mode: XdpMode, allow: Vec<IpAddr>) -> anyhow::Result<()> {
        anyhow::bail!("{interface} ({mode}, {allow:?}): there is no data plane yet")
    }
}
