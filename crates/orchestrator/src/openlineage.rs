//! A run as OpenLineage events (specification 2-0-2), for catalogues such as Marquez: to a file or to a URL.
//!
//! The pipeline is a job, and each stage is one whose parent it is. What a stage gives is a dataset that keeps its name from
//! run to run, `STORE/PIPELINE/STAGE`, and has the artifact's digest as its version.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use artifact::event::Status;
use artifact::{Digest, Doing, Event, Manifest, ObjectStore, Sink, StageError};
use serde_json::{Value, json};

use crate::plan::Plan;
use crate::rules::secret::Secret;
use crate::rules::webhook::{Webhook, host};

const PRODUCER: &str = concat!("urn:episteme:", env!("CARGO_PKG_VERSION"));
const SCHEMA: &str = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent";
/// How long the end of a run waits for the last events to be taken.
const PATIENCE: Duration = Duration::from_secs(10);

/// The sink that makes them.
pub struct OpenLineage {
    target: Target,
    namespace: String,
    pipeline: String,
    store: ObjectStore,
    /// Stage type and the stages it takes from, by name.
    stages: BTreeMap<String, (String, Vec<String>)>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    run: String,
    artifacts: BTreeMap<String, Digest>,
    /// Started and not over: stage to run id.
    open: BTreeMap<String, String>,
    failed: bool,
}

/// What an event is about.
struct Job<'a> {
    name: &'a str,
    kind: &'a str,
    run_id: String,
    /// Facets of its run.
    facets: Value,
}

enum Target {
    File(Mutex<File>),
    Url(Poster),
}

impl OpenLineage {
    /// Opens the file (its events are appended to what is there), or makes ready to post. `EPISTEME_OPENLINEAGE_KEY` is the
    /// token of a server that wants one, `OPENLINEAGE_NAMESPACE` the jobs' namespace.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(target: &str, plan: &Plan, store: &ObjectStore) -> Result<Self, StageError> {
        let target = if target.starts_with("http://") || target.starts_with("https://") {
            Target::Url(Poster::new(target.to_owned(), std::env::var("EPISTEME_OPENLINEAGE_KEY").ok().map(Secret::new)))
        } else {
            let file = File::options().create(true).append(true).open(target);
            Target::File(Mutex::new(file.doing(|| format!("opening {target} for OpenLineage events"))?))
        };
        let name = |from: usize| plan.stages[from].name.clone();
        let stages = plan.stages.iter();
        let stages =
            stages.map(|stage| (stage.name.clone(), (stage.stage.uses().to_owned(), stage.upstream().map(name).collect()))).collect();
        let namespace = std::env::var("OPENLINEAGE_NAMESPACE").ok().filter(|name| !name.is_empty());
        Ok(Self {
            target,
            namespace: namespace.unwrap_or_else(|| "episteme".into()),
            pipeline: plan.name.clone(),
            store: store.clone(),
            stages,
            state: Mutex::default(),
        })
    }

    fn send(&self, kind: &str, job: Job<'_>, inputs: Vec<Value>, outputs: Vec<Value>) {
        let mut run_facets = job.facets;
        run_facets["processing_engine"] =
            facet("1-1-1/ProcessingEngineRunFacet", json!({ "version": env!("CARGO_PKG_VERSION"), "name": "episteme" }));
        let job_facet = json!({ "processingType": "BATCH", "integration": "EPISTEME", "jobType": job.kind });
        let event = json!({
            "eventType": kind,
            "eventTime": jiff::Timestamp::now().to_string(),
            "producer": PRODUCER,
            "schemaURL": SCHEMA,
            "run": { "runId": job.run_id, "facets": run_facets },
            "job": { "namespace": self.namespace, "name": job.name, "facets": { "jobType": facet("2-0-3/JobTypeJobFacet", job_facet) } },
            "inputs": inputs,
            "outputs": outputs,
        });
        match &self.target {
            Target::Url(poster) => poster.post(event.to_string()),
            Target::File(file) => {
                let Ok(mut file) = file.lock() else { return };
                // A full disk is told of where it matters.
                let _ = file.write_all(format!("{event}\n").as_bytes());
            }
        }
    }

    fn pipeline_event(&self, kind: &str, run: &str) {
        let job = Job { name: &self.pipeline, kind: "PIPELINE", run_id: run_id(run, ""), facets: json!({}) };
        self.send(kind, job, Vec::new(), Vec::new());
    }

    /// An event of a stage; `facets` beside that of its parent.
    fn stage_event(&self, kind: &str, state: &State, stage: &str, mut facets: Value) {
        let Some((uses, upstream)) = self.stages.get(stage) else { return };
        facets["parent"] = facet(
            "1-0-1/ParentRunFacet",
            json!({ "run": { "runId": run_id(&state.run, "") }, "job": { "namespace": self.namespace, "name": self.pipeline } }),
        );
        let dataset = |name: &String| state.artifacts.get(name).map(|digest| self.dataset(name, digest));
        let inputs = upstream.iter().filter_map(dataset).collect();
        let outputs = if kind == "COMPLETE" { dataset(&stage.to_owned()).into_iter().collect() } else { Vec::new() };
        let name = format!("{}.{stage}", self.pipeline);
        let job = Job { name: &name, kind: &uses.to_uppercase(), run_id: run_id(&state.run, stage), facets };
        self.send(kind, job, inputs, outputs);
    }

    fn dataset(&self, stage: &str, digest: &Digest) -> Value {
        let object = self.store.object(digest);
        let manifest = Manifest::read(&object).ok();
        let (rows, bytes, files) =
            manifest.map_or((None, 0, 0), |manifest| (manifest.outcome.rows, manifest.bytes(), manifest.files.len()));
        let statistics = json!({ "rowCount": rows, "size": bytes, "fileCount": files });
        json!({
            "namespace": "file",
            "name": format!("{}/{}/{stage}", self.store.root().display(), self.pipeline),
            "facets": {
                "version": facet("1-0-1/DatasetVersionDatasetFacet", json!({ "datasetVersion": digest })),
                "dataSource": facet("1-0-1/DatasourceDatasetFacet", json!({ "name": digest.short(), "uri": format!("file://{}", object.display()) })),
            },
            "outputFacets": { "outputStatistics": facet("1-0-2/OutputStatisticsOutputDatasetFacet", statistics) },
        })
    }

    fn start(&self, state: &mut State, stage: &str) {
        if !state.open.contains_key(stage) {
            state.open.insert(stage.to_owned(), run_id(&state.run, stage));
            self.stage_event("START", state, stage, json!({}));
        }
    }
}

impl Sink for OpenLineage {
    fn emit(&self, event: Event) {
        let Ok(mut state) = self.state.lock() else { return };
        match event {
            Event::RunStarted { run, .. } => {
                self.pipeline_event("START", &run);
                state.run = run;
            }
            Event::StageStarted { stage, .. } => self.start(&mut state, &stage),
            Event::StageFinished { stage, status, artifact, .. } => {
                self.start(&mut state, &stage);
                state.artifacts.extend(artifact.map(|artifact| (stage.clone(), artifact)));
                let facets = if status == Status::Cached { json!({ "tags": cached() }) } else { json!({}) };
                self.stage_event("COMPLETE", &state, &stage, facets);
                state.open.remove(&stage);
            }
            Event::StageFailed { stage, error, .. } => {
                self.start(&mut state, &stage);
                state.failed = true;
                let message = facet("1-0-1/ErrorMessageRunFacet", json!({ "message": error.to_string(), "programmingLanguage": "RUST" }));
                self.stage_event("FAIL", &state, &stage, json!({ "errorMessage": message }));
                state.open.remove(&stage);
            }
            Event::RunFinished { ok, run, .. } => {
                for stage in std::mem::take(&mut state.open).into_keys() {
                    self.stage_event("ABORT", &state, &stage, json!({}));
                }
                let kind = match (ok, state.failed) {
                    (true, _) => "COMPLETE",
                    (false, true) => "FAIL",
                    (false, false) => "ABORT",
                };
                self.pipeline_event(kind, &run);
            }
            _ => {}
        }
    }
}

/// A facet says who made it and by which schema.
fn facet(schema: &str, mut content: Value) -> Value {
    let name = schema.split('/').next_back().unwrap_or_default();
    content["_producer"] = PRODUCER.into();
    content["_schemaURL"] = format!("https://openlineage.io/spec/facets/{schema}.json#/$defs/{name}").into();
    content
}

/// Marks a run of a stage that was taken from the cache.
fn cached() -> Value {
    facet("1-0-0/TagsRunFacet", json!({ "tags": [{ "key": "status", "value": "cached", "source": "EPISTEME" }] }))
}

/// A UUID (RFC 9562, version 8: bits of our own) of a run, or of a stage's part in it: the same whenever it is asked for.
fn run_id(run: &str, stage: &str) -> String {
    let digest = Digest::of(format!("{run}\n{stage}").as_bytes()).to_string();
    let variant = ['8', '9', 'a', 'b'][usize::from(digest.as_bytes()[16]) % 4];
    format!("{}-{}-8{}-{variant}{}-{}", &digest[..8], &digest[8..12], &digest[13..16], &digest[17..20], &digest[20..32])
}

/// Posts beside the run, so that a slow catalogue holds nothing up.
struct Poster {
    queue: Option<Sender<String>>,
    thread: Option<JoinHandle<()>>,
}

impl Poster {
    fn new(url: String, token: Option<Secret>) -> Self {
        let (queue, events) = channel();
        Self { queue: Some(queue), thread: Some(std::thread::spawn(move || deliver(&url, token.as_ref(), &events))) }
    }

    fn post(&self, event: String) {
        // A poster that has given up has said so.
        let _ = self.queue.as_ref().map(|queue| queue.send(event));
    }
}

impl Drop for Poster {
    fn drop(&mut self) {
        self.queue = None;
        let clock = Instant::now();
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            if clock.elapsed() > PATIENCE {
                anstream::eprintln!("warning: the last OpenLineage events were not taken within {} s", PATIENCE.as_secs());
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Posts event by event; gives up at the first that is not taken, and says so once.
fn deliver(url: &str, token: Option<&Secret>, events: &Receiver<String>) {
    let webhook = Webhook { url, key: None, token, retries: 2 };
    for event in events {
        if let Err(fault) = webhook.post(event.as_bytes(), &|| false) {
            anstream::eprintln!("warning: OpenLineage events are not taken by {}: {fault}", host(url));
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_id_is_a_uuid_and_stays_the_same() {
        let id = run_id("run", "model");
        let lengths: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert!(id.chars().all(|c| c == '-' || c.is_ascii_hexdigit()));
        assert!(id.as_bytes()[14] == b'8' && b"89ab".contains(&id.as_bytes()[19]), "{id}: version and variant");
        assert_eq!(id, run_id("run", "model"));
        assert_ne!(id, run_id("run", ""));
    }
}
