//! What the recipes in `pipelines/` reach, over several seeds: test accuracy, seconds and memory of the training. `EPISTEME_MIRROR` has the data.

use std::env;

use super::{Done, episteme, field, remove, scratch, timed};

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
            let (_, said) = timed(episteme(&store).args(["run", file, "--json", "--set", &set]))?;
            let end = said.lines().last().unwrap_or_default();
            let model = end.split("\"name\":\"model\"").nth(1).unwrap_or_default();
            // Of the model's own, the first of each.
            let own =
                |key: &str| model.split(key).nth(1).and_then(|rest| rest.split([',', '}']).next()?.parse::<f64>().ok()).unwrap_or_default();
            let accuracy = 100.0 * field(end, "\"test.accuracy\":").unwrap_or_default();
            println!("{name}_seed_{seed}_accuracy {accuracy:.2} percent");
            println!("{name}_seed_{seed}_training {:.1} s", own("\"seconds\":"));
            println!("{name}_seed_{seed}_memory {:.0} MB", own("\"peak_memory\":") / 1e6);
            accuracies.push(accuracy);
        }
        let mean = accuracies.iter().sum::<f64>() / accuracies.len() as f64;
        let squares: f64 = accuracies.iter().map(|accuracy| (accuracy - mean).powi(2)).sum();
        println!("{name}_accuracy_mean {mean:.2} percent");
        println!("{name}_accuracy_deviation {:.2} percent", (squares / (accuracies.len() - 1) as f64).sqrt());
    }
    remove(&store)
}
