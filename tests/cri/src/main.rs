//! `weave-cri SOCKET VERB …`: one call to a runtime, for people who look around in a lab.
#![expect(clippy::print_stdout, reason = "a command line")]

use anyhow::{Context, Result, bail};
use weave_cri::Runtime;
use weave_cri::messages::{PodSandboxConfig, PodSandboxMetadata};

const USAGE: &str = "usage: weave-cri SOCKET (ready | run NAME | status ID | stop ID | remove ID)";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [socket, rest @ ..] = words.as_slice() else { bail!(USAGE) };
    let runtime = Runtime::connect(socket.as_ref()).await?;
    match rest {
        ["ready"] => match runtime.network_ready().await? {
            Ok(()) => println!("ready"),
            Err(why) => bail!("the network is not ready: {why}"),
        },
        ["run", name] => {
            let metadata = PodSandboxMetadata {
                name: (*name).to_owned(),
                uid: (*name).to_owned(),
                namespace: "default".to_owned(),
                attempt: 0,
            };
            let config = PodSandboxConfig {
                metadata: Some(metadata),
                hostname: (*name).to_owned(),
                ..Default::default()
            };
            println!("{}", runtime.run(config).await?);
        }
        ["status", id] => {
            let answer = runtime.status(id).await?;
            let status = answer.status.context("no status")?;
            println!("state {} ip {}", status.state, status.network.unwrap_or_default().ip);
        }
        ["stop", id] => runtime.stop(id).await?,
        ["remove", id] => runtime.remove(id).await?,
        _ => bail!(USAGE),
    }
    Ok(())
}
