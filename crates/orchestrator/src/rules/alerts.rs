//! Alerts: who is told when a run fails, when one is well again, or when a metric crosses a bound.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use artifact::{ConfigProblem, Doing, ObjectStore, StageError};
use serde::Deserialize;

use crate::document::{AlertKind, Document, FailedStage};
use crate::folder::file_name;
use crate::record::{self, RunRecord};
use crate::rules::condition::Condition;
use crate::rules::secret::{Secret, Secrets, Source};
use crate::rules::webhook::{self, Webhook};

/// The keys of an alert.
pub const KEYS: [&str; 6] = ["on", "if", "command", "webhook", "secret", "retries"];

/// What an alert can be on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum On {
    /// A stage failed.
    Failure,
    /// Nothing failed, and something did in the run before.
    Recovery,
}

/// One rule.
#[derive(Debug, Clone, Deserialize)]
pub struct Alert {
    #[serde(default)]
    on: Vec<On>,
    #[serde(default, rename = "if")]
    condition: Option<Condition>,
    #[serde(default)]
    command: Option<String>,
    #[serde(default)]
    webhook: Option<Url>,
    #[serde(default)]
    secret: Option<Source>,
    #[serde(default = "retries")]
    retries: u32,
}

fn retries() -> u32 {
    4
}

/// A URL, or where it is when it is a secret itself, as chat services' are.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "a webhook is \"https://…\", { env = \"NAME\" } or { file = \"PATH\" }")]
enum Url {
    Plain(String),
    Secret(Source),
}

impl Alert {
    /// What serde cannot see.
    pub fn check(self) -> Result<Self, ConfigProblem> {
        let problem = |key, message: &str| Err(ConfigProblem::at(key, message));
        if self.on.is_empty() && self.condition.is_none() {
            return problem("", "an alert says when: `on = [\"failure\", \"recovery\"]`, or `if = \"test.accuracy < 0.97\"`");
        }
        if self.command.is_some() == self.webhook.is_some() {
            return problem("", "an alert says how: `command = \"…\"` or `webhook = \"https://…\"`, one of them");
        }
        if self.condition.as_ref().is_some_and(Condition::uses_current) {
            return problem("if", "`current` is for promotions: give a number");
        }
        if self.secret.is_some() && self.webhook.is_none() {
            return problem("secret", "a secret signs a webhook, and this alert has none");
        }
        if let Some(Url::Plain(url)) = &self.webhook
            && !(url.starts_with("https://") || url.starts_with("http://"))
        {
            return problem("webhook", "a webhook is a URL that begins with https:// or http://");
        }
        Ok(self)
    }

    /// Reads the secrets it needs.
    ///
    /// # Errors
    /// When one is not there.
    pub fn arm(&self, base: &Path) -> Result<Armed, StageError> {
        let url = match &self.webhook {
            Some(Url::Plain(url)) => Some(Secret::new(url.clone())),
            Some(Url::Secret(source)) => Some(source.read(base)?),
            None => None,
        };
        Ok(Armed { alert: self.clone(), url, key: self.secret.as_ref().map(|source| source.read(base)).transpose()? })
    }
}

/// An alert with its secrets.
pub struct Armed {
    alert: Alert,
    url: Option<Secret>,
    key: Option<Secret>,
}

/// The alerts of a pipeline, ready before its run begins: a secret that is missing is found out then, not at night.
#[derive(Default)]
pub struct Alarm {
    armed: Vec<Armed>,
}

impl Alarm {
    /// Reads all secrets.
    ///
    /// # Errors
    /// When one is not there.
    pub fn new(alerts: &[Alert], base: &Path) -> Result<Self, StageError> {
        Ok(Self { armed: alerts.iter().map(|alert| alert.arm(base)).collect::<Result<_, _>>()? })
    }

    /// What must not be shown.
    pub fn secrets(&self) -> Secrets {
        let hidden_url = |armed: &Armed| armed.url.clone().filter(|_| matches!(armed.alert.webhook, Some(Url::Secret(_))));
        Secrets::new(self.armed.iter().flat_map(|armed| hidden_url(armed).into_iter().chain(armed.key.clone())))
    }

    /// Looks at a run that is over, and tells whom it concerns. What could not be told is a warning on standard error.
    ///
    /// # Errors
    /// When the records of the runs cannot be read.
    pub fn ring(&self, store: &ObjectStore, run: &str, stop: &dyn Fn() -> bool) -> Result<(), StageError> {
        if self.armed.is_empty() {
            return Ok(());
        }
        let folder = store.run(run);
        let now = RunRecord::read(store, &folder)?;
        let before = before(store, &now)?;
        let failures = record::failures(&folder);
        let secrets = self.secrets();
        for armed in &self.armed {
            for (event, message) in armed.alert.events(&now, before.as_ref()) {
                let body = serde_json::to_string(&payload(event, &message, &now, &failures)).doing(|| "writing an alert".into())?;
                if let Err(fault) = armed.send(event, secrets.redact(&body).as_bytes(), &secrets, stop) {
                    anstream::eprintln!("warning: the alert on {} of {run} did not get through: {}", event.word(), secrets.redact(&fault));
                }
            }
        }
        Ok(())
    }
}

/// The run of this pipeline before this one that came to an end of its own.
fn before(store: &ObjectStore, now: &RunRecord) -> Result<Option<RunRecord>, StageError> {
    for folder in record::folders(store)?.iter().rev().skip_while(|folder| file_name(folder) != now.run).skip(1) {
        if crate::begun::pipeline_of(&file_name(folder)) != Some(&now.pipeline) {
            continue;
        }
        let run = RunRecord::read(store, folder)?;
        // An interrupted run, nothing of which failed, tells nothing.
        if run.seconds.is_some() && (run.failed() || run.stages.iter().all(|stage| stage.artifact.is_some())) {
            return Ok(Some(run));
        }
    }
    Ok(None)
}

impl Alert {
    /// What this alert has to say of a run.
    fn events(&self, now: &RunRecord, before: Option<&RunRecord>) -> Vec<(AlertKind, String)> {
        let name = &now.pipeline;
        let mut events = Vec::new();
        let failed = now.failed();
        if failed && self.on.contains(&On::Failure) {
            events.push((AlertKind::Failure, format!("{name} failed ({})", now.run)));
        }
        if !failed && before.is_some_and(RunRecord::failed) && self.on.contains(&On::Recovery) {
            events.push((AlertKind::Recovery, format!("{name} is well again ({})", now.run)));
        }
        if let Some(condition) = self.condition.as_ref().filter(|_| !failed) {
            // It is the crossing that is told, not every run beyond the bound.
            let was = before.filter(|before| !before.failed()).is_some_and(|before| condition.judge(&before.metrics, None).holds);
            let is = condition.judge(&now.metrics, None);
            if is.holds && !was {
                events.push((AlertKind::Metric, format!("{name}: {} ({})", is.reason, now.run)));
            }
            if !is.holds && was && self.on.contains(&On::Recovery) {
                events.push((AlertKind::Recovery, format!("{name}: {} ({})", is.reason, now.run)));
            }
        }
        events
    }
}

/// What a webhook gets as its body, and a command on its standard input. `text` is what chat services show.
fn payload(event: AlertKind, text: &str, run: &RunRecord, failures: &BTreeMap<String, StageError>) -> Document {
    let failed = failures.iter().map(|(stage, error)| FailedStage { stage: stage.clone(), error: error.clone() });
    Document::Alert {
        event,
        text: text.to_owned(),
        pipeline: run.pipeline.clone(),
        run: run.run.clone(),
        seconds: run.seconds,
        failed: failed.collect(),
        metrics: run.metrics.clone(),
        sent: jiff::Timestamp::now().to_string(),
    }
}

impl Armed {
    fn send(&self, event: AlertKind, body: &[u8], secrets: &Secrets, stop: &dyn Fn() -> bool) -> Result<(), String> {
        if let Some(url) = &self.url {
            let webhook = Webhook { url: url.reveal(), key: self.key.as_ref(), token: None, retries: self.alert.retries };
            return webhook.post(body, stop).map_err(|fault| format!("{}: {fault}", webhook::host(url.reveal())));
        }
        let command = self.alert.command.as_deref().unwrap_or_default();
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).env("EPISTEME_ALERT", event.word()).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = shell.spawn().map_err(|error| error.to_string())?;
        if let Some(mut stdin) = child.stdin.take() {
            // A command that does not read what it is given is none the worse for it.
            let _ = stdin.write_all(body);
        }
        let ended = child.wait_with_output().map_err(|error| error.to_string())?;
        match ended.status.success() {
            true => Ok(()),
            false => {
                let said = String::from_utf8_lossy(&ended.stderr);
                let said = if said.trim().is_empty() { String::new() } else { format!(": {}", said.trim()) };
                Err(format!("`{}` ended with {}{said}", secrets.redact(command), ended.status))
            }
        }
    }
}
