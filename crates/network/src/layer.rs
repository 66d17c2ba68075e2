//! One layer as data: what users write in TOML (`"conv 32 3x3 relu"`), parsed and written back in one canonical form.
//!
//! `text` reads and writes the words of a layer; `config` is how serde and editors see it.

mod config;
mod text;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use text::LayerParseError;

/// What is applied to each value that a layer gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
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
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Activation::None => "",
            Activation::Relu => " relu",
            Activation::Gelu => " gelu",
            Activation::Silu => " silu",
        }
    }

    fn is_none(&self) -> bool {
        *self == Activation::None
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
///
/// A [`Residual`] block is a table: `{ residual = ["conv 64 3x3 same relu", "conv 64 3x3 same"], activation = "relu" }`.
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
    /// Layers whose result is added to what came in.
    Residual(Residual),
}

/// A residual block (He et al. 2016, <https://arxiv.org/abs/1512.03385>): what its layers give is added to what came in, or to what a
/// shortcut makes of it where the shapes differ.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Residual {
    /// The layers.
    #[serde(rename = "residual")]
    pub layers: Vec<LayerSpec>,
    /// The layers that what came in passes before the sum; none where the shapes are alike.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shortcut: Vec<LayerSpec>,
    /// Applied to the sum.
    #[serde(default, skip_serializing_if = "Activation::is_none")]
    pub activation: Activation,
}

#[cfg(test)]
mod tests;
