//! The model card: what a person should know before trusting the model (Mitchell et al. 2019).

use std::fmt::Write;

use crate::examples::Examples;
use crate::model::Model;

/// Markdown.
pub fn card(model: &Model, examples: &Examples) -> String {
    let mut text = String::from("# Model card\n\n## Data\n\n");
    let (train, validation) = (examples.train().len(), examples.validation().len());
    let classes = &model.declaration.classes;
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "An example is {}. Learnt from {train} examples, watched on {validation}; {} rows in the dataset. {} classes: {}.\n\n## Network\n\n```text\n{}\n```\n\n## Training\n",
        examples.shape(),
        examples.rows(),
        classes.len(),
        classes.join(", "),
        model.network.report()
    );
    let config = &model.config;
    let _ = writeln!(
        text,
        "| | |\n|---|---|\n| epochs | {} of {}, weights of epoch {} kept |",
        model.history.len(),
        config.epochs,
        model.declaration.kept_epoch
    );
    let optimiser = serde_json::to_string(&config.optimiser).unwrap_or_default();
    let _ = writeln!(
        text,
        "| batch | {} |\n| optimiser | `{optimiser}` |\n| class weights | {:?} |\n| seed | {} |",
        config.batch,
        config.class_weights,
        config.seed()
    );
    if let Some(temperature) = model.declaration.temperature {
        let _ = writeln!(text, "| temperature | {temperature:.3}, fitted on the validation split; in the last layer's weights |");
    }
    if let Some(gpu) = &model.gpu {
        let _ = writeln!(text, "| computed on | {gpu} |");
    }
    let metrics = &model.metrics;
    let _ = writeln!(
        text,
        "\n## Results on the {} split\n\nAccuracy {:.4}, macro F1 {:.4}, log loss {:.4}, over {} examples.\n\n| class | precision | recall | F1 | support |\n|---|---|---|---|---|",
        model.split(examples),
        metrics.accuracy,
        metrics.macro_f1,
        metrics.log_loss,
        metrics.examples
    );
    for (name, class) in classes.iter().zip(&metrics.per_class) {
        let _ = writeln!(
            text,
            "| {} | {:.4} | {:.4} | {:.4} | {} |",
            name.replace('|', "\\|"),
            class.precision,
            class.recall,
            class.f1,
            class.support
        );
    }
    text.push_str(
        "\n## Files\n\n`f.json` holds the fitted processing, `model.json` the layers, `weights.safetensors` the weights: `layers.N.weight` is \
         `[kernel height, kernel width, in, out]` for a convolution and `[in, out]` for a dense layer, over images as \
         `[height, width, channels]`.\n",
    );
    text
}
