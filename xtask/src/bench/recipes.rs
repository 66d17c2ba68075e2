//! What the recipes in `pipelines/` reach, over several seeds: test accuracy, seconds and memory of the training. `EPISTEME_MIRROR` has the data.

use std::env;

use super::{Done, episteme, field, number, output, remove, scratch};

/// What is measured unless pipelines are named, the longest last.
const RECIPES: [&str; 4] =
    ["pipelines/mnist-quick.toml", "pipelines/mnist-best.toml", "pipelines/cifar10.toml", "pipelines/cifar10-best.toml"];

/// Seeds of the weights and of the order of examples; the split stays.
const SEEDS: [u32; 3] = [1, 2, 3];

/// Runs each pipeline with each seed.
pub(super) fn recipes(named: &[String]) -> Done {
    if env::var_os("EPISTEME_MIRROR").is_none() {
        eprintln!("EPISTEME_MIRROR must name a folder that has mnist/ and cifar10-images/");
        return Err(2);
    }
    let store = scratch("recipes")?;
    let all: Vec<String> = if named.is_empty() { RECIPES.map(str::to_owned).to_vec() } else { named.to_vec() };
    for file in &all {
        let name = file.rsplit('/').next().unwrap_or(file).trim_end_matches(".toml");
        let mut accuracies = Vec::new();
        for seed in SEEDS {
            let set = format!("stages.model.seed={seed}");
            let said = output(episteme(&store).args(["run", file, "--json", "--set", &set]))?;
            let Some(trial) = Trial::read(said.lines().last().unwrap_or_default()) else {
                eprintln!("{file}: the run has no stage `model`, or no `test.accuracy`");
                return Err(1);
            };
            println!("{name}_seed_{seed}_accuracy {:.2} percent", trial.accuracy);
            println!("{name}_seed_{seed}_training {:.1} s", trial.seconds);
            println!("{name}_seed_{seed}_memory {:.0} MB", trial.memory / 1e6);
            accuracies.push(trial.accuracy);
        }
        let mean = accuracies.iter().sum::<f64>() / accuracies.len() as f64;
        let squares: f64 = accuracies.iter().map(|accuracy| (accuracy - mean).powi(2)).sum();
        println!("{name}_accuracy_mean {mean:.2} percent");
        println!("{name}_accuracy_deviation {:.2} percent", (squares / (accuracies.len() - 1) as f64).sqrt());
    }
    remove(&store)
}

/// What one run came to.
struct Trial {
    /// Of the test set, percent.
    accuracy: f64,
    /// Wall clock and peak bytes of the stage `model`.
    seconds: f64,
    memory: f64,
}

impl Trial {
    /// From the last line of a run.
    fn read(end: &str) -> Option<Self> {
        let model = end.split("\"name\":\"model\"").nth(1)?;
        // The model's own come before those of the stages behind it.
        let own = |key: &str| number(model.split(key).nth(1)?);
        let accuracy = 100.0 * field(end, "\"test.accuracy\":")?;
        Some(Self { accuracy, seconds: own("\"seconds\":")?, memory: own("\"peak_memory\":")? })
    }
}
