//! One layer as data: what users write in TOML (`"conv 32 3x3 relu"`), parsed and written back in one canonical form.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What is applied to each value that a layer gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// The value itself.
    #[default]
    None,
    /// `max(x, 0)`.
    Relu,
    /// `x Φ(x)` with the exact normal distribution function (Hendrycks and Gimpel 2016, <https://arxiv.org/abs/1606.08415>).
    Gelu,
    /// `x / (1 + exp(-x))`, also called swish (Ramachandran et al. 2017, <https://arxiv.org/abs/1710.05941>).
    Silu,
}

impl Activation {
    const WORDS: [(&'static str, Activation); 4] =
        [("relu", Activation::Relu), ("gelu", Activation::Gelu), ("silu", Activation::Silu), ("none", Activation::None)];

    fn from_word(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(name, _)| *name == word).map(|(_, activation)| *activation)
    }

    /// The word users write; empty for [`Activation::None`].
    fn suffix(self) -> &'static str {
        match self {
            Activation::None => "",
            Activation::Relu => " relu",
            Activation::Gelu => " gelu",
            Activation::Silu => " silu",
        }
    }
}

/// What a convolution does at the border of its image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Padding {
    /// Nothing is added: the output is smaller than the input by the kernel's size less one.
    #[default]
    Valid,
    /// Zeros are added so that the output is `ceil(input / stride)` high and wide; where the number of zeros
    /// is odd, the additional one goes to the bottom and right (as TensorFlow and Keras do).
    Same,
}

/// One layer of a network.
///
/// It is written as a line of words; [`LayerSpec::from_str`] reads them and `Display` gives the canonical form:
///
/// | text | layer |
/// |---|---|
/// | `conv 32 3x3 relu` | 32 filters of 3 rows × 3 columns, then ReLU |
/// | `conv 64 3x3 stride 2 same relu` | with a stride and zero padding |
/// | `pool 2`, `pool 3 stride 2` | maximum over windows; the stride is the window unless said |
/// | `avgpool 2`, `globalpool` | mean over windows; mean over the whole image |
/// | `dense 64 relu` | fully connected; flattens an image that reaches it |
/// | `dropout 0.5` | drops half of the values while training |
/// | `batchnorm`, `batchnorm relu` | normalises each channel over the batch |
#[derive(Clone, Debug, PartialEq)]
pub enum LayerSpec {
    /// A two-dimensional convolution (a cross-correlation, as in all frameworks) with a bias.
    Conv {
        /// Number of output channels.
        filters: usize,
        /// Rows and columns of the kernel.
        kernel: (usize, usize),
        /// Step between windows, in both directions.
        stride: usize,
        /// What happens at the border.
        padding: Padding,
        /// Applied to each output.
        activation: Activation,
    },
    /// The maximum of each square window, channel by channel. What does not fill a window is left out.
    MaxPool {
        /// Rows and columns of the window.
        window: usize,
        /// Step between windows.
        stride: usize,
    },
    /// The mean of each square window, channel by channel. What does not fill a window is left out.
    AveragePool {
        /// Rows and columns of the window.
        window: usize,
        /// Step between windows.
        stride: usize,
    },
    /// The mean of each channel over the whole image.
    GlobalPool,
    /// A fully connected layer with a bias.
    Dense {
        /// Number of outputs.
        units: usize,
        /// Applied to each output.
        activation: Activation,
    },
    /// Sets a share of the values to zero while training and scales the others by `1 / (1 - rate)`; nothing at inference
    /// (Srivastava et al. 2014).
    Dropout {
        /// The share that is dropped, from 0 to below 1.
        rate: f32,
    },
    /// Batch normalisation with a learned scale and shift (Ioffe and Szegedy 2015, <https://arxiv.org/abs/1502.03167>).
    BatchNorm {
        /// Applied to each output.
        activation: Activation,
    },
}

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
        }
    }
}

impl Serialize for LayerSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LayerSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for LayerSpec {
    fn schema_name() -> Cow<'static, str> {
        "LayerSpec".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "One layer: `conv FILTERS ROWSxCOLUMNS [stride N] [same] [ACTIVATION]`, `pool SIDE [stride N]` (maximum), `avgpool SIDE [stride N]`, `globalpool`, `dense UNITS [ACTIVATION]`, `dropout SHARE`, `batchnorm [ACTIVATION]`. ACTIVATION is relu, gelu, silu or none. The last layer is `dense CLASSES`.",
            "pattern": "^\\s*(conv|pool|avgpool|globalpool|dense|dropout|batchnorm)(\\s|$)",
            "examples": ["conv 32 3x3 relu", "conv 64 3x3 stride 2 same relu", "pool 2", "dense 64 relu", "dropout 0.5", "batchnorm relu", "dense 10"]
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn reason(text: &str) -> String {
        text.parse::<LayerSpec>().unwrap_err().to_string()
    }

    #[test]
    fn the_texts_of_the_manual_are_read() {
        let conv = LayerSpec::Conv { filters: 64, kernel: (3, 5), stride: 2, padding: Padding::Same, activation: Activation::Relu };
        assert_eq!("conv 64 3x5 stride 2 same relu".parse(), Ok(conv.clone()));
        assert_eq!(" conv  64 3x5 same stride 2 relu ".parse(), Ok(conv));
        assert_eq!("pool 2".parse(), Ok(LayerSpec::MaxPool { window: 2, stride: 2 }));
        assert_eq!("pool 3 stride 2".parse(), Ok(LayerSpec::MaxPool { window: 3, stride: 2 }));
        assert_eq!("avgpool 2".parse(), Ok(LayerSpec::AveragePool { window: 2, stride: 2 }));
        assert_eq!("globalpool".parse(), Ok(LayerSpec::GlobalPool));
        assert_eq!("dense 10 none".parse(), Ok(LayerSpec::Dense { units: 10, activation: Activation::None }));
        assert_eq!("dropout 0.5".parse(), Ok(LayerSpec::Dropout { rate: 0.5 }));
        assert_eq!("batchnorm relu".parse(), Ok(LayerSpec::BatchNorm { activation: Activation::Relu }));
    }

    #[test]
    fn a_wrong_word_is_named_with_what_was_probably_meant() {
        assert!(reason("conv 32 3x3 rellu").contains("`rellu` is not understood; did you mean `relu`?"));
        assert!(reason("conv2d 32 3x3").contains("did you mean `conv`?"));
        assert!(reason("Linear 10").contains("did you mean `dense`?"));
        assert!(reason("pol 2").contains("did you mean `pool`?"));
        assert!(reason("dense 10 swish").contains("did you mean `silu`?"));
        let far = reason("transformer 8");
        assert!(far.contains("a layer is one of: `conv`") && !far.contains("did you mean"), "{far}");
    }

    #[test]
    fn what_is_missing_or_too_much_is_said() {
        assert!(reason("").contains("it is empty"));
        assert!(reason("conv").contains("the number of filters is missing"));
        assert!(reason("conv 32").contains("the kernel is missing"));
        assert!(reason("conv 32 3").contains("write it as ROWSxCOLUMNS"));
        assert!(reason("conv 0 3x3").contains("above zero"));
        assert!(reason("dense -4").contains("`-4` is not the number of units"));
        assert!(reason("dropout 1").contains("from 0 to below 1"));
        assert!(reason("dense 10 relu relu").contains("take it out"));
        assert!(reason("globalpool 2").contains("take it out"));
        assert!(reason("relu").contains("no layer of its own"));
    }

    #[test]
    fn toml_and_json_see_a_string() {
        let layers: Vec<LayerSpec> = serde_json::from_str(r#"["conv 32 3x3  relu", "dense 10 none"]"#).unwrap();
        assert_eq!(serde_json::to_string(&layers).unwrap(), r#"["conv 32 3x3 relu","dense 10"]"#);
        let error = serde_json::from_str::<LayerSpec>(r#""pool two""#).unwrap_err().to_string();
        assert!(error.contains("layer `pool two`: `two` is not the side of the window"), "{error}");
    }

    fn activations() -> impl Strategy<Value = Activation> {
        prop_oneof![Just(Activation::None), Just(Activation::Relu), Just(Activation::Gelu), Just(Activation::Silu)]
    }

    fn layers() -> impl Strategy<Value = LayerSpec> {
        prop_oneof![
            (1..512usize, (1..9usize, 1..9usize), 1..4usize, any::<bool>(), activations()).prop_map(
                |(filters, kernel, stride, same, activation)| LayerSpec::Conv {
                    filters,
                    kernel,
                    stride,
                    padding: if same { Padding::Same } else { Padding::Valid },
                    activation
                }
            ),
            (1..9usize, 1..9usize).prop_map(|(window, stride)| LayerSpec::MaxPool { window, stride }),
            (1..9usize, 1..9usize).prop_map(|(window, stride)| LayerSpec::AveragePool { window, stride }),
            Just(LayerSpec::GlobalPool),
            (1..9999usize, activations()).prop_map(|(units, activation)| LayerSpec::Dense { units, activation }),
            (0.0..1.0f32).prop_map(|rate| LayerSpec::Dropout { rate }),
            activations().prop_map(|activation| LayerSpec::BatchNorm { activation }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(layer in layers()) {
            prop_assert_eq!(layer.to_string().parse::<LayerSpec>(), Ok(layer));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(conv|pool|dense|dropout)? ?[ -~]{0,20}") {
            let _ = text.parse::<LayerSpec>();
        }
    }
}
