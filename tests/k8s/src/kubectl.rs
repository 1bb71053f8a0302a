//! Asking the API server as a person would.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use serde_json::Value;
use weave_netns::command::{self, Finished};
use weave_netns::ns::Netns;

/// `kubectl` with a kubeconfig, on a node of the lab.
#[derive(Debug, Clone)]
pub struct Kubectl {
    pub(crate) program: PathBuf,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) place: Arc<Netns>,
}

impl Kubectl {
    /// The command with these arguments, to be run inside [`Self::place`].
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command::words(&self.program, arguments);
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", "/nonexistent");
        command
    }

    /// Where it runs.
    #[must_use]
    pub fn place(&self) -> &Netns {
        &self.place
    }

    /// Runs it to its end, whatever the end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn finish(&self, arguments: &[&str]) -> Result<Finished> {
        self.place.finish(self.command(arguments), "")
    }

    /// What it prints.
    ///
    /// # Errors
    /// It fails.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.place.succeed(self.command(arguments), "")
    }

    /// `kubectl get … -o json`.
    ///
    /// # Errors
    /// It fails.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let shown = self.run(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&shown).with_context(|| format!("kubectl get printed no JSON: {shown}"))
    }

    /// The objects of a list.
    ///
    /// # Errors
    /// It fails.
    pub fn list(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let mut list = self.get(arguments)?;
        Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// `kubectl apply -f -` of a document, YAML or JSON.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn apply(&self, document: &str) -> Result<String> {
        self.place.succeed(self.command(&["apply", "-f", "-"]), document)
    }

    /// `kubectl delete -f -` of a document; waits until the objects are gone.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn delete(&self, document: &str) -> Result<String> {
        self.place.succeed(self.command(&["delete", "--ignore-not-found", "-f", "-"]), document)
    }

    /// POSTs a document to a path of the API: for what kubectl has no verb.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn post(&self, path: &str, document: &Value) -> Result<Value> {
        let command = self.command(&["create", "--raw", path, "-f", "-"]);
        let answer = self.place.succeed(command, &document.to_string())?;
        serde_json::from_str(&answer).with_context(|| format!("POST {path} answered no JSON: {answer}"))
    }
}
