//! etcd and the API server, on a node of the lab, and the controllers if a test wants them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use weave_netns::command;
use weave_netns::userland::Userland;
use weave_netns::wait::eventually;
use weave_netns::{Host, Lab};

use crate::daemon::Daemon;
use crate::kubectl::Kubectl;
use crate::programs::program;

/// The range of the Services.
pub const SERVICE_RANGE: &str = "10.96.0.0/16";
/// The API server's own Service, the first of the range.
pub const API_SERVICE: &str = "10.96.0.1";
/// The API server's port.
pub const PORT: u16 = 6443;
/// How long the API server may take to answer, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(90);

/// The users that exist, by token: the token of a user is [`token`] of its name.
const USERS: [(&str, &str); 4] = [
    ("admin", "system:masters"),
    ("system:kube-controller-manager", ""),
    ("system:kube-scheduler", ""),
    ("system:kube-proxy", ""),
];

/// A control plane. It ends when dropped.
#[derive(Debug)]
pub struct ControlPlane {
    host: Arc<Host>,
    folder: PathBuf,
    userland: Userland,
    api: Mutex<Option<Daemon>>,
    others: Mutex<Vec<Daemon>>,
}

impl ControlPlane {
    /// etcd and the API server on a new node `control` of the lab, for nodes of these names. They answer when this
    /// returns; nothing else of Kubernetes runs.
    ///
    /// # Errors
    /// A program is missing or does not start.
    pub fn start(lab: &Lab, nodes: &[&str]) -> Result<Self> {
        let host = lab.host("control")?;
        let folder = host.folder().join("kubernetes");
        fs::create_dir_all(folder.join("certificates")).context("making the control plane's folder")?;
        let userland = Userland::start(&host)?;
        let plane = Self { host, folder, userland, api: Mutex::default(), others: Mutex::default() };
        plane.write_credentials(nodes)?;
        plane.start_etcd()?;
        plane.start_api()?;
        Ok(plane)
    }

    /// Its node.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The API server's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}:{PORT}", self.host.address())
    }

    /// The file with the certificate of the authority that the API server's belongs to.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.folder.join("certificates/apiserver.crt")
    }

    /// A kubeconfig for a user: `admin`, `system:node:NAME` or one of the system's components.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn kubeconfig(&self, user: &str) -> Result<PathBuf> {
        let file = self.folder.join(format!("{}.kubeconfig", user.replace(':', "-")));
        let document = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {"server": self.url(), "certificate-authority": self.authority()}}],
            "users": [{"name": user, "user": {"token": token(user)}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
            "current-context": "lab",
        });
        // In one step: whoever was given the file before may be reading it.
        let beside = file.with_extension("new");
        fs::write(&beside, document.to_string()).context("writing a kubeconfig")?;
        fs::rename(&beside, &file).context("putting a kubeconfig in its place")?;
        Ok(file)
    }

    /// kubectl as administrator, from the control plane's node.
    ///
    /// # Errors
    /// The kubeconfig cannot be written.
    pub fn kubectl(&self) -> Result<Kubectl> {
        Ok(Kubectl {
            program: program("kubectl")?,
            kubeconfig: self.kubeconfig("admin")?,
            place: self.host.ns()?,
        })
    }

    /// A token as a pod of this service account finds it.
    ///
    /// # Errors
    /// There is no such account.
    pub fn account_token(&self, namespace: &str, account: &str) -> Result<String> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let answer = self.kubectl()?.post(&path, &request)?;
        answer["status"]["token"].as_str().map(str::to_owned).context("a TokenRequest without a token")
    }

    /// Starts the API server again after [`Self::stop_api`], and waits until it answers.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_api(&self) -> Result<()> {
        let mut api = self.api.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(api.is_none(), "the API server runs already");
        let program = program("kube-apiserver")?;
        let daemon =
            Daemon::start(&self.userland, &self.folder, "kube-apiserver", (&program, &self.api_flags()))?;
        let daemon = api.insert(daemon);
        let kubectl = self.kubectl()?;
        eventually(PATIENCE, "the API server is ready", || {
            daemon.ensure_running()?;
            kubectl.run(&["get", "--raw", "/readyz"])?;
            kubectl.run(&["get", "namespace", "kube-system"]).map(drop)
        })
        .with_context(|| daemon.tail())
    }

    /// Ends the API server, politely (`TERM`) or not (`KILL`).
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn stop_api(&self, signal: &str) -> Result<()> {
        let api = self.api.lock().unwrap_or_else(PoisonError::into_inner).take();
        api.context("the API server does not run")?.stop(&self.userland, signal)
    }

    /// Lets the API server hang, so that it answers nobody, until the answer of this is dropped.
    ///
    /// # Errors
    /// It does not run.
    pub fn hang_api(&self) -> Result<Hung<'_>> {
        let api = self.api.lock().unwrap_or_else(PoisonError::into_inner);
        api.as_ref().context("the API server does not run")?.signal(&self.userland, "STOP")?;
        Ok(Hung(self))
    }

    /// Starts the controllers and the scheduler, which pods need.
    ///
    /// # Errors
    /// A program is missing.
    pub fn start_controllers(&self) -> Result<()> {
        let manager = self.kubeconfig("system:kube-controller-manager")?;
        let scheduler = self.kubeconfig("system:kube-scheduler")?;
        self.run(
            "kube-controller-manager",
            flags(&[
                ("kubeconfig", &shown(&manager)),
                ("authentication-kubeconfig", &shown(&manager)),
                ("authorization-kubeconfig", &shown(&manager)),
                ("service-account-private-key-file", &shown(&self.folder.join("accounts.key"))),
                ("root-ca-file", &shown(&self.authority())),
                ("use-service-account-credentials", "true"),
                ("allocate-node-cidrs", "false"),
                ("leader-elect", "false"),
                ("cert-dir", "/run/kube-controller-manager"),
                // A node that is gone is noticed within a test's patience.
                ("node-monitor-grace-period", "20s"),
            ]),
        )?;
        self.run(
            "kube-scheduler",
            flags(&[
                ("kubeconfig", &shown(&scheduler)),
                ("authentication-kubeconfig", &shown(&scheduler)),
                ("authorization-kubeconfig", &shown(&scheduler)),
                ("leader-elect", "false"),
                ("cert-dir", "/run/kube-scheduler"),
            ]),
        )
    }

    /// The ends of all logs.
    #[must_use]
    pub fn diagnosis(&self) -> String {
        let api = self.api.lock().unwrap_or_else(PoisonError::into_inner);
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        api.iter().chain(others.iter()).map(Daemon::tail).collect::<Vec<_>>().join("\n---\n")
    }

    fn run(&self, name: &'static str, flags: Vec<String>) -> Result<()> {
        let daemon = Daemon::start(&self.userland, &self.folder, name, (&program(name)?, &flags))?;
        self.others.lock().unwrap_or_else(PoisonError::into_inner).push(daemon);
        Ok(())
    }

    /// Tokens for all users, and the key that signs the tokens of service accounts.
    fn write_credentials(&self, nodes: &[&str]) -> Result<()> {
        let nodes = nodes.iter().map(|name| (format!("system:node:{name}"), "system:nodes"));
        let users = USERS.iter().map(|(user, group)| ((*user).to_owned(), *group)).chain(nodes);
        let lines: Vec<_> =
            users.map(|(user, group)| format!("{},{user},{user},{group}\n", token(&user))).collect();
        fs::write(self.folder.join("tokens.csv"), lines.concat()).context("writing the tokens")?;
        let key = self.folder.join("accounts.key");
        let mut command = command::line("openssl genrsa -out");
        command.arg(key).arg("2048");
        command::succeed(command, "").map(drop).context("is openssl missing? run `make tools`")
    }

    fn start_etcd(&self) -> Result<()> {
        self.run(
            "etcd",
            flags(&[
                // In memory: the disk of a test machine is slow, and nothing of this outlives the test.
                ("data-dir", "/var/lib/etcd"),
                ("listen-client-urls", "http://127.0.0.1:2379"),
                ("advertise-client-urls", "http://127.0.0.1:2379"),
                ("listen-peer-urls", "http://127.0.0.1:2380"),
                ("log-level", "warn"),
            ]),
        )
    }

    fn api_flags(&self) -> Vec<String> {
        let key = shown(&self.folder.join("accounts.key"));
        flags(&[
            ("etcd-servers", "http://127.0.0.1:2379"),
            ("cert-dir", &shown(&self.folder.join("certificates"))),
            ("bind-address", "0.0.0.0"),
            ("secure-port", &PORT.to_string()),
            ("advertise-address", &self.host.address().to_string()),
            ("service-cluster-ip-range", SERVICE_RANGE),
            ("token-auth-file", &shown(&self.folder.join("tokens.csv"))),
            ("authorization-mode", "Node,RBAC"),
            ("enable-admission-plugins", "NodeRestriction"),
            ("service-account-key-file", &key),
            ("service-account-signing-key-file", &key),
            ("service-account-issuer", "https://kubernetes.default.svc"),
            ("allow-privileged", "true"),
            // Without it, exec and logs look the nodes' names up in DNS.
            ("kubelet-preferred-address-types", "InternalIP"),
            // A restart need not wait for the clients' long polls.
            ("shutdown-delay-duration", "0s"),
        ])
    }
}

/// An API server that hangs.
#[derive(Debug)]
pub struct Hung<'a>(&'a ControlPlane);

impl Drop for Hung<'_> {
    fn drop(&mut self) {
        let api = self.0.api.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(api) = api.as_ref() {
            api.resume(&self.0.userland);
        }
    }
}

/// The token of a user.
#[must_use]
pub fn token(user: &str) -> String {
    format!("token-of-{}", user.replace(':', "-"))
}

/// `--name=value` of each pair; one without a value is a switch.
pub(crate) fn flags(pairs: &[(&str, &str)]) -> Vec<String> {
    let one = |(name, value): &(&str, &str)| match *value {
        "" => format!("--{name}"),
        value => format!("--{name}={value}"),
    };
    pairs.iter().map(one).collect()
}

pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string()
}
