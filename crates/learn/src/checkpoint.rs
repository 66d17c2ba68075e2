//! A training's whole state in a file, so that what was interrupted goes on as if nothing had happened: to the same bytes.
//!
//! The file is a line of JSON ([`Header`]), the blobs it names the sizes of, and a BLAKE3 digest of all before. It is written beside its
//! place, synced and renamed, so that there is a whole one at any instant.

use std::path::{Path, PathBuf};

use artifact::{Digest, Doing, StageError, durable};
use network::{Network, Optimiser, Snapshot};
use serde::{Deserialize, Serialize};

use crate::classifier::Classifier;
use crate::model::Epoch;
use crate::training::failed;

const FILE: &str = "checkpoint";
const FORMAT: u32 = 1;

/// Where a training stands, apart from its weights.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Epochs that are done and judged.
    pub history: Vec<Epoch>,
    /// Steps of the next epoch that are done.
    pub steps: usize,
    /// Sum of losses and number of hits over these steps' examples.
    pub losses: f64,
    /// See `losses`.
    pub correct: usize,
    /// The best epoch so far, from 1, and its score.
    pub best: Option<(u32, f64)>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    /// The config that the training follows: another one does not go on from here.
    config: Classifier,
    /// The GPU that computed, if one did: another device would not go on to the same bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gpu: Option<String>,
    standing: Standing,
    /// Sizes of the blobs: weights, optimiser, best weights, averaged weights.
    sizes: [usize; 4],
}

/// All that a training holds.
pub struct State {
    /// Where it stands.
    pub standing: Standing,
    /// As it is now.
    pub network: Network,
    /// With its moments.
    pub optimiser: Optimiser,
    /// The weights of the best epoch.
    pub best: Option<Snapshot>,
    /// The moving average of the weights.
    pub average: Option<Snapshot>,
}

/// Where checkpoints of a stage lie; none where nothing outlives the process.
pub struct Checkpoints {
    path: PathBuf,
}

impl Checkpoints {
    /// In a folder that outlives the process.
    pub fn within(folder: &Path) -> Self {
        Self { path: folder.join(FILE) }
    }

    /// Writes the state durably, in place of the last.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self, config: &Classifier, gpu: Option<&str>, state: &mut State) -> Result<(), StageError> {
        let current = state.network.snapshot();
        let mut weights_of = |snapshot: Option<&Snapshot>| match snapshot {
            None => Ok(Vec::new()),
            Some(snapshot) => {
                state.network.restore(snapshot)?;
                state.network.to_safetensors()
            }
        };
        let (best, average) = (weights_of(state.best.as_ref()), weights_of(state.average.as_ref()));
        state.network.restore(&current).map_err(failed)?;
        let blobs = [
            state.network.to_safetensors().map_err(failed)?,
            state.optimiser.to_safetensors(&state.network).map_err(failed)?,
            best.map_err(failed)?,
            average.map_err(failed)?,
        ];
        let header = Header {
            format: FORMAT,
            config: config.clone(),
            gpu: gpu.map(str::to_owned),
            standing: state.standing.clone(),
            sizes: blobs.each_ref().map(Vec::len),
        };
        let mut bytes = serde_json::to_vec(&header).doing(|| "writing a checkpoint's header".into())?;
        bytes.push(b'\n');
        blobs.iter().for_each(|blob| bytes.extend_from_slice(blob));
        let digest = Digest::of(&bytes).to_string();
        bytes.extend_from_slice(digest.as_bytes());
        let writing = || format!("writing the checkpoint {}", self.path.display());
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder).doing(writing)?;
        }
        durable::write_file(&self.path, &bytes).doing(writing)
    }

    /// Puts the state back that an interrupted training of this config on this device left. False if there is none, or none of use.
    ///
    /// # Errors
    /// When a sound checkpoint does not fit the network.
    pub fn read(&self, config: &Classifier, gpu: Option<&str>, state: &mut State) -> Result<bool, StageError> {
        let Ok(bytes) = std::fs::read(&self.path) else { return Ok(false) };
        let Some((header, blobs)) = parse(&bytes) else { return Ok(false) };
        let is_alike = serde_json::to_value(&header.config).ok() == serde_json::to_value(config).ok() && header.gpu.as_deref() == gpu;
        if header.format != FORMAT || !is_alike {
            return Ok(false);
        }
        let architecture = state.network.architecture().clone();
        let load = |bytes: &[u8]| Network::from_safetensors(&architecture, config.seed(), bytes).map_err(failed);
        let snapshot = |bytes: &[u8]| if bytes.is_empty() { Ok(None) } else { load(bytes).map(|network| Some(network.snapshot())) };
        let [weights, optimiser, best, average] = blobs;
        // Where it computes stays as it is.
        state.network.restore(&load(weights)?.snapshot()).map_err(failed)?;
        state.optimiser.load(&state.network, optimiser).map_err(failed)?;
        (state.best, state.average) = (snapshot(best)?, snapshot(average)?);
        state.standing = header.standing;
        Ok(true)
    }
}

/// The header and blobs of a file that is whole.
fn parse(bytes: &[u8]) -> Option<(Header, [&[u8]; 4])> {
    let (content, digest) = bytes.split_at_checked(bytes.len().checked_sub(Digest::of(b"").to_string().len())?)?;
    if Digest::of(content).to_string().as_bytes() != digest {
        return None;
    }
    let line = content.iter().position(|byte| *byte == b'\n')?;
    let header: Header = serde_json::from_slice(&content[..line]).ok()?;
    let mut rest = &content[line + 1..];
    let mut blobs = [&[][..]; 4];
    for (blob, size) in blobs.iter_mut().zip(header.sizes) {
        (*blob, rest) = rest.split_at_checked(size)?;
    }
    rest.is_empty().then_some((header, blobs))
}
