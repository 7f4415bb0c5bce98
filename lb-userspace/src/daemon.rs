//! (to come)

/// Placeholder: the daemon's own module replaces this file.
pub async fn run(config: std::path::PathBuf) -> anyhow::Result<()> {
    anyhow::bail!("{}: there is no daemon yet", config.display())
}
