//! A layer's text, read from left to right and written back in its canonical form.

use std::{fmt, str::FromStr};

use super::{Activation, LayerSpec, Padding, Residual};

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

const KINDS: [&str; 7] = ["conv", "pool", "avgpool", "globalpool", "dense", "dropout", "batchnorm"];
const CONV_OPTIONS: [&str; 7] = ["stride", "same", "valid", "relu", "gelu", "silu", "none"];
const ACTIVATIONS: [&str; 4] = ["relu", "gelu", "silu", "none"];

/// Layers that other tools name differently, and what they are called here.
const SYNONYMS: [(&str, &str); 13] = [
    ("conv2d", "conv"),
    ("convolution", "conv"),
    ("maxpool", "pool"),
    ("maxpooling", "pool"),
    ("max_pool", "pool"),
    ("averagepool", "avgpool"),
    ("avg_pool", "avgpool"),
    ("gap", "globalpool"),
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

    fn kernel(&mut self) -> Result<(usize, usize), LayerParseError> {
        let Some(word) = self.words.next() else {
            return Err(self.error("", "the kernel is missing; write it as ROWSxCOLUMNS, for example `conv 32 3x3`".into()));
        };
        let sides = word.split_once('x').and_then(|(rows, columns)| Some((rows.parse().ok()?, columns.parse().ok()?)));
        match sides {
            Some((rows, columns)) if rows > 0 && columns > 0 => Ok((rows, columns)),
            _ => Err(self.error(word, format!("`{word}` is not a kernel; write it as ROWSxCOLUMNS, for example `3x3`"))),
        }
    }

    /// An activation at the end of a layer, if there is one.
    fn activation(&mut self) -> Result<Activation, LayerParseError> {
        match self.words.next() {
            None => Ok(Activation::None),
            Some(word) => {
                Activation::from_word(word).ok_or_else(|| self.unknown(word, "what may stand here is an activation", &ACTIVATIONS))
            }
        }
    }

    fn window(&mut self, kind: &str) -> Result<(usize, usize), LayerParseError> {
        let window = self.number("the side of the window", &format!("{kind} 2"))?;
        let stride = match self.words.next() {
            None => window,
            Some("stride") => self.number("the stride", &format!("{kind} 3 stride 2"))?,
            Some(word) => return Err(self.unknown(word, "after the window comes only", &["stride"])),
        };
        Ok((window, stride))
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
            "conv" => conv(&mut words)?,
            "pool" => {
                let (window, stride) = words.window(kind)?;
                LayerSpec::MaxPool { window, stride }
            }
            "avgpool" => {
                let (window, stride) = words.window(kind)?;
                LayerSpec::AveragePool { window, stride }
            }
            "globalpool" => LayerSpec::GlobalPool,
            "dense" => LayerSpec::Dense { units: words.number("the number of units", "dense 64 relu")?, activation: words.activation()? },
            "dropout" => dropout(&mut words)?,
            "batchnorm" => LayerSpec::BatchNorm { activation: words.activation()? },
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

fn conv(words: &mut Words<'_>) -> Result<LayerSpec, LayerParseError> {
    let filters = words.number("the number of filters", "conv 32 3x3 relu")?;
    let kernel = words.kernel()?;
    let (mut stride, mut padding, mut activation) = (1, Padding::Valid, Activation::None);
    while let Some(word) = words.words.next() {
        match word {
            "stride" => stride = words.number("the stride", "conv 32 3x3 stride 2")?,
            "same" => padding = Padding::Same,
            "valid" => padding = Padding::Valid,
            word => {
                activation = Activation::from_word(word).ok_or_else(|| words.unknown(word, "after the kernel may come", &CONV_OPTIONS))?;
                break;
            }
        }
    }
    Ok(LayerSpec::Conv { filters, kernel, stride, padding, activation })
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
        let pool = |f: &mut fmt::Formatter<'_>, kind: &str, window: usize, stride: usize| {
            write!(f, "{kind} {window}")?;
            if stride == window { Ok(()) } else { write!(f, " stride {stride}") }
        };
        match self {
            LayerSpec::Conv { filters, kernel: (rows, columns), stride, padding, activation } => {
                write!(f, "conv {filters} {rows}x{columns}")?;
                if *stride != 1 {
                    write!(f, " stride {stride}")?;
                }
                if *padding == Padding::Same {
                    write!(f, " same")?;
                }
                f.write_str(activation.suffix())
            }
            LayerSpec::MaxPool { window, stride } => pool(f, "pool", *window, *stride),
            LayerSpec::AveragePool { window, stride } => pool(f, "avgpool", *window, *stride),
            LayerSpec::GlobalPool => f.write_str("globalpool"),
            LayerSpec::Dense { units, activation } => write!(f, "dense {units}{}", activation.suffix()),
            LayerSpec::Dropout { rate } => write!(f, "dropout {rate}"),
            LayerSpec::BatchNorm { activation } => write!(f, "batchnorm{}", activation.suffix()),
            LayerSpec::Residual(residual) => residual.fmt(f),
        }
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
