//! A layer's text, read from left to right and written back in its canonical form.

use std::{fmt, str::FromStr};

use super::{Activation, Axes, BatchNormalisation, Convolution, LayerSpec, Padding, PoolKind, Pooling, Residual};
use crate::whiten;

/// A layer's text that could not be read, with the word that is wrong and what may stand there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("layer `{text}`: {reason}")]
pub struct LayerParseError {
    /// The whole text of the layer.
    pub text: String,
    /// The word at fault; empty when one is missing.
    pub word: String,
    /// What is wrong and what is allowed.
    pub reason: String,
}

/// The words that a layer begins with.
pub(super) const KINDS: [&str; 15] = [
    "conv",
    "depthwise",
    "pool",
    "avgpool",
    "globalpool",
    "globalmaxpool",
    "dense",
    "dropout",
    "batchnorm",
    "whiten",
    "series",
    "conv1d",
    "depthwise1d",
    "pool1d",
    "avgpool1d",
];
const CONV_OPTIONS: [&str; 11] = ["stride", "dilation", "groups", "same", "causal", "valid", "dirac", "relu", "gelu", "silu", "none"];
const NORM_OPTIONS: [&str; 7] = ["noscale", "momentum", "epsilon", "relu", "gelu", "silu", "none"];
const WHITEN_OPTIONS: [&str; 6] = ["bias", "epsilon", "relu", "gelu", "silu", "none"];
const DENSE_OPTIONS: [&str; 5] = ["zeros", "relu", "gelu", "silu", "none"];
const ACTIVATIONS: [&str; 4] = ["relu", "gelu", "silu", "none"];

/// Layers that other tools name differently, and what they are called here.
const SYNONYMS: [(&str, &str); 17] = [
    ("depthwiseconv", "depthwise"),
    ("maxpool1d", "pool1d"),
    ("dilated", "dilation"),
    ("conv2d", "conv"),
    ("convolution", "conv"),
    ("maxpool", "pool"),
    ("maxpooling", "pool"),
    ("max_pool", "pool"),
    ("averagepool", "avgpool"),
    ("avg_pool", "avgpool"),
    ("gap", "globalpool"),
    ("gmp", "globalmaxpool"),
    ("linear", "dense"),
    ("fc", "dense"),
    ("swish", "silu"),
    ("bn", "batchnorm"),
    ("batch_norm", "batchnorm"),
];

/// Reads the words of one layer from left to right.
struct Words<'a> {
    text: &'a str,
    words: std::iter::Peekable<std::str::SplitWhitespace<'a>>,
}

impl<'a> Words<'a> {
    fn new(text: &'a str) -> Self {
        Words { text, words: text.split_whitespace().peekable() }
    }

    fn error(&self, word: &str, reason: String) -> LayerParseError {
        LayerParseError { text: self.text.trim().to_owned(), word: word.to_owned(), reason }
    }

    /// A word that is not one of `allowed`: names it, guesses what was meant, and lists what may stand there.
    fn unknown(&self, word: &str, what: &str, allowed: &[&str]) -> LayerParseError {
        let guess = match nearest(word, allowed) {
            Some(near) => format!("did you mean `{near}`? "),
            None => String::new(),
        };
        let list = allowed.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
        self.error(word, format!("`{word}` is not understood; {guess}{what}: {list}"))
    }

    fn number(&mut self, what: &str, example: &str) -> Result<usize, LayerParseError> {
        let Some(word) = self.words.next() else {
            return Err(self.error("", format!("{what} is missing; for example `{example}`")));
        };
        match word.parse::<usize>() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(self.error(word, format!("`{word}` is not {what}, a whole number above zero; for example `{example}`"))),
        }
    }

    /// A number above zero that `fits`.
    fn decimal(&mut self, what: &str, fits: impl Fn(f32) -> bool) -> Result<f32, LayerParseError> {
        let Some(word) = self.words.next() else {
            return Err(self.error("", format!("a number is missing: {what}")));
        };
        match word.parse::<f32>() {
            Ok(number) if number > 0.0 && fits(number) => Ok(number),
            _ => Err(self.error(word, format!("`{word}` is not {what}"))),
        }
    }

    /// `ROWSxCOLUMNS`, or one number along a series.
    fn kernel(&mut self, axes: Axes) -> Result<(usize, usize), LayerParseError> {
        let form = match axes {
            Axes::Image => "write it as ROWSxCOLUMNS, for example `3x3`",
            Axes::Series => "write how many steps it sees, for example `5`",
        };
        let Some(word) = self.words.next() else {
            return Err(self.error("", format!("the kernel is missing; {form}")));
        };
        let sides = match axes {
            Axes::Image => word.split_once('x').and_then(|(rows, columns)| Some((rows.parse().ok()?, columns.parse().ok()?))),
            Axes::Series => word.parse().ok().map(|steps| (1, steps)),
        };
        match sides {
            Some((rows, columns)) if rows > 0 && columns > 0 => Ok((rows, columns)),
            _ => Err(self.error(word, format!("`{word}` is not a kernel; {form}"))),
        }
    }

    fn pool(&mut self, word: &str, kind: PoolKind, axes: Axes) -> Result<LayerSpec, LayerParseError> {
        let window = self.number("the side of the window", &format!("{word} 2"))?;
        let stride = match self.words.next() {
            None => window,
            Some("stride") => self.number("the stride", &format!("{word} 3 stride 2"))?,
            Some(other) => return Err(self.unknown(other, "after the window comes only", &["stride"])),
        };
        Ok(LayerSpec::Pool(Pooling { axes, kind, window, stride }))
    }

    /// What follows the kernel of a convolution, in any order, up to the activation.
    fn conv_options(&mut self, mut conv: Convolution) -> Result<LayerSpec, LayerParseError> {
        while let Some(word) = self.words.next() {
            match word {
                "stride" => conv.stride = self.number("the stride", "conv 32 3x3 stride 2")?,
                "dilation" => conv.dilation = self.number("the dilation", "conv 32 3x3 dilation 2")?,
                "groups" if conv.filters.is_some() => conv.groups = self.number("the number of groups", "conv 32 3x3 groups 4")?,
                "same" => conv.padding = Padding::Same,
                "causal" if conv.axes == Axes::Series => conv.padding = Padding::Causal,
                "valid" => conv.padding = Padding::Valid,
                "dirac" => conv.dirac = true,
                word => {
                    conv.activation = Activation::from_word(word).ok_or_else(|| self.unknown_option(word, &conv))?;
                    break;
                }
            }
        }
        Ok(LayerSpec::Conv(conv))
    }

    fn unknown_option(&self, word: &str, conv: &Convolution) -> LayerParseError {
        let allowed = CONV_OPTIONS.into_iter().filter(|option| match *option {
            "groups" => conv.filters.is_some(),
            "causal" => conv.axes == Axes::Series,
            _ => true,
        });
        self.unknown(word, "after the kernel may come", &allowed.collect::<Vec<_>>())
    }

    fn end(&mut self) -> Result<(), LayerParseError> {
        match self.words.next() {
            None => Ok(()),
            Some(word) => Err(self.error(word, format!("nothing can follow here, but `{word}` does; take it out"))),
        }
    }
}

/// The allowed word closest to what was written, if any is close.
fn nearest<'a>(word: &str, allowed: &[&'a str]) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let synonym = SYNONYMS.iter().find(|(other, _)| *other == lower).map(|(_, ours)| *ours);
    if let Some(ours) = synonym {
        return allowed.iter().copied().find(|candidate| *candidate == ours);
    }
    let distance = |candidate: &&str| strsim::damerau_levenshtein(&lower, candidate);
    allowed.iter().copied().min_by_key(distance).filter(|best| distance(best) <= 1 + best.len() / 4)
}

impl FromStr for LayerSpec {
    type Err = LayerParseError;

    fn from_str(text: &str) -> Result<Self, LayerParseError> {
        let mut words = Words::new(text);
        let Some(kind) = words.words.next() else {
            return Err(words.error("", format!("it is empty; a layer begins with one of {}", KINDS.join(", "))));
        };
        let layer = match kind {
            "conv" => conv(&mut words, Axes::Image, true)?,
            "conv1d" => conv(&mut words, Axes::Series, true)?,
            "depthwise" => conv(&mut words, Axes::Image, false)?,
            "depthwise1d" => conv(&mut words, Axes::Series, false)?,
            "pool" => words.pool(kind, PoolKind::Maximum, Axes::Image)?,
            "pool1d" => words.pool(kind, PoolKind::Maximum, Axes::Series)?,
            "avgpool" => words.pool(kind, PoolKind::Mean, Axes::Image)?,
            "avgpool1d" => words.pool(kind, PoolKind::Mean, Axes::Series)?,
            "globalpool" => LayerSpec::GlobalPool(PoolKind::Mean),
            "globalmaxpool" => LayerSpec::GlobalPool(PoolKind::Maximum),
            "series" => series(&mut words)?,
            "dense" => dense(&mut words)?,
            "dropout" => dropout(&mut words)?,
            "batchnorm" => batch_norm(&mut words)?,
            "whiten" => whitening(&mut words)?,
            other if ACTIVATIONS.contains(&other) => {
                return Err(words.error(
                    other,
                    format!("`{other}` is no layer of its own; write it behind the layer that it follows, as in `dense 64 {other}`"),
                ));
            }
            "residual" => {
                let form = "{ residual = [\"conv 64 3x3 same relu\", \"conv 64 3x3 same\"], activation = \"relu\" }";
                return Err(words.error(kind, format!("a residual block is a table, not a text: `{form}`")));
            }
            other => return Err(words.unknown(other, "a layer is one of", &KINDS)),
        };
        words.end()?;
        Ok(layer)
    }
}

fn conv(words: &mut Words<'_>, axes: Axes, has_filters: bool) -> Result<LayerSpec, LayerParseError> {
    let filters = if has_filters { Some(words.number("the number of filters", "conv 32 3x3 relu")?) } else { None };
    let kernel = words.kernel(axes)?;
    words.conv_options(Convolution {
        axes,
        filters,
        kernel,
        stride: 1,
        dilation: 1,
        groups: 1,
        padding: Padding::Valid,
        dirac: false,
        activation: Activation::None,
    })
}

fn batch_norm(words: &mut Words<'_>) -> Result<LayerSpec, LayerParseError> {
    let mut norm = BatchNormalisation::default();
    while let Some(word) = words.words.next() {
        match word {
            "noscale" => norm.scale = false,
            "momentum" => norm.momentum = words.decimal("a momentum, from above 0 to 1", |value| value <= 1.0)?,
            "epsilon" => norm.epsilon = words.decimal("an epsilon, above 0", f32::is_finite)?,
            word => {
                norm.activation =
                    Activation::from_word(word).ok_or_else(|| words.unknown(word, "after `batchnorm` may come", &NORM_OPTIONS))?;
                break;
            }
        }
    }
    Ok(LayerSpec::BatchNorm(norm))
}

fn whitening(words: &mut Words<'_>) -> Result<LayerSpec, LayerParseError> {
    let kernel = words.kernel(Axes::Image)?;
    let (mut bias_epochs, mut epsilon, mut activation) = (None, whiten::EPSILON, Activation::None);
    while let Some(word) = words.words.next() {
        match word {
            "bias" => {
                let epochs = words.number("the number of epochs that the bias is learned for", "whiten 2x2 bias 3")?;
                bias_epochs = Some(u32::try_from(epochs).unwrap_or(u32::MAX));
            }
            "epsilon" => epsilon = words.decimal("an epsilon, above 0", f32::is_finite)?,
            word => {
                activation =
                    Activation::from_word(word).ok_or_else(|| words.unknown(word, "after the kernel may come", &WHITEN_OPTIONS))?;
                break;
            }
        }
    }
    Ok(LayerSpec::Whiten { kernel, bias_epochs, epsilon, activation })
}

fn dense(words: &mut Words<'_>) -> Result<LayerSpec, LayerParseError> {
    let units = words.number("the number of units", "dense 64 relu")?;
    let zeros = words.words.next_if_eq(&"zeros").is_some();
    let activation = match words.words.next() {
        None => Activation::None,
        Some(word) => {
            Activation::from_word(word).ok_or_else(|| words.unknown(word, "after the number of units may come", &DENSE_OPTIONS))?
        }
    };
    Ok(LayerSpec::Dense { units, zeros, activation })
}

fn series(words: &mut Words<'_>) -> Result<LayerSpec, LayerParseError> {
    let form = "write STEPSxCHANNELS, for example `series 128x6`";
    let Some(word) = words.words.next() else {
        return Err(words.error("", format!("its size is missing; {form}")));
    };
    match word.split_once('x').map(|(steps, channels)| (steps.parse(), channels.parse())) {
        Some((Ok(steps @ 1..), Ok(channels @ 1..))) => Ok(LayerSpec::Series { steps, channels }),
        _ => Err(words.error(word, format!("`{word}` is not the size of a series; {form}"))),
    }
}

fn dropout(words: &mut Words<'_>) -> Result<LayerSpec, LayerParseError> {
    let Some(word) = words.words.next() else {
        return Err(words.error("", "the share to drop is missing; for example `dropout 0.5`".into()));
    };
    match word.parse::<f32>() {
        Ok(rate) if (0.0..1.0).contains(&rate) => Ok(LayerSpec::Dropout { rate }),
        _ => Err(words.error(word, format!("`{word}` is not a share from 0 to below 1; for example `dropout 0.5`"))),
    }
}

impl fmt::Display for LayerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayerSpec::Conv(conv) => conv.fmt(f),
            LayerSpec::Pool(pool) => pool.fmt(f),
            LayerSpec::GlobalPool(PoolKind::Mean) => f.write_str("globalpool"),
            LayerSpec::GlobalPool(PoolKind::Maximum) => f.write_str("globalmaxpool"),
            LayerSpec::Series { steps, channels } => write!(f, "series {steps}x{channels}"),
            LayerSpec::Dense { units, zeros, activation } => {
                write!(f, "dense {units}{}{}", if *zeros { " zeros" } else { "" }, activation.suffix())
            }
            LayerSpec::Dropout { rate } => write!(f, "dropout {rate}"),
            LayerSpec::BatchNorm(norm) => norm.fmt(f),
            LayerSpec::Whiten { kernel: (rows, columns), bias_epochs, epsilon, activation } => {
                write!(f, "whiten {rows}x{columns}")?;
                bias_epochs.map_or(Ok(()), |epochs| write!(f, " bias {epochs}"))?;
                if *epsilon != whiten::EPSILON {
                    write!(f, " epsilon {epsilon:e}")?;
                }
                f.write_str(activation.suffix())
            }
            LayerSpec::Residual(residual) => residual.fmt(f),
        }
    }
}

impl Axes {
    /// What the kind of a layer ends in.
    fn suffix(self) -> &'static str {
        match self {
            Axes::Image => "",
            Axes::Series => "1d",
        }
    }
}

impl fmt::Display for Convolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.filters {
            Some(filters) => write!(f, "conv{} {filters}", self.axes.suffix())?,
            None => write!(f, "depthwise{}", self.axes.suffix())?,
        }
        match (self.axes, self.kernel) {
            (Axes::Image, (rows, columns)) => write!(f, " {rows}x{columns}")?,
            (Axes::Series, (_, steps)) => write!(f, " {steps}")?,
        }
        for (word, number) in [("stride", self.stride), ("dilation", self.dilation), ("groups", self.groups)] {
            if number != 1 {
                write!(f, " {word} {number}")?;
            }
        }
        let padding = match self.padding {
            Padding::Valid => "",
            Padding::Same => " same",
            Padding::Causal => " causal",
        };
        let dirac = if self.dirac { " dirac" } else { "" };
        write!(f, "{padding}{dirac}{}", self.activation.suffix())
    }
}

impl fmt::Display for BatchNormalisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usual = BatchNormalisation::default();
        f.write_str(if self.scale { "batchnorm" } else { "batchnorm noscale" })?;
        if self.momentum != usual.momentum {
            write!(f, " momentum {}", self.momentum)?;
        }
        if self.epsilon != usual.epsilon {
            write!(f, " epsilon {:e}", self.epsilon)?;
        }
        f.write_str(self.activation.suffix())
    }
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            PoolKind::Maximum => "pool",
            PoolKind::Mean => "avgpool",
        };
        write!(f, "{kind}{} {}", self.axes.suffix(), self.window)?;
        if self.stride == self.window { Ok(()) } else { write!(f, " stride {}", self.stride) }
    }
}

impl fmt::Display for Residual {
    /// As in TOML.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{ residual = [{}]", List(&self.layers))?;
        if !self.shortcut.is_empty() {
            write!(f, ", shortcut = [{}]", List(&self.shortcut))?;
        }
        if self.activation != Activation::None {
            write!(f, ", activation = \"{}\"", self.activation.suffix().trim_start())?;
        }
        f.write_str(" }")
    }
}

struct List<'a>(&'a [LayerSpec]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, layer) in self.0.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            match layer {
                LayerSpec::Residual(residual) => write!(f, "{comma}{residual}")?,
                layer => write!(f, "{comma}\"{layer}\"")?,
            }
        }
        Ok(())
    }
}
