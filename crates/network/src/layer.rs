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
    /// Nothing is added: the output is smaller than the input by the kernel's extent less one.
    #[default]
    Valid,
    /// Zeros are added so that the output is `ceil(input / stride)` high and wide; where the number of zeros
    /// is odd, the additional one goes to the bottom and right (as TensorFlow and Keras do).
    Same,
    /// As [`Padding::Same`] along a series, with all zeros before its beginning: no output sees what comes after it.
    Causal,
}

/// What windows move over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Axes {
    /// Rows and columns of an image.
    #[default]
    Image,
    /// The steps of a series, which is an image of one row: `[1, time, channels]`.
    Series,
}

/// A convolution (a cross-correlation, as in all frameworks) with a bias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Convolution {
    /// Of its windows.
    pub axes: Axes,
    /// Number of output channels; `None` for a depthwise convolution, which has one filter for each channel.
    pub filters: Option<usize>,
    /// Rows and columns of the kernel; along a series, one row.
    pub kernel: (usize, usize),
    /// Step between windows, in both directions.
    pub stride: usize,
    /// Step between the points of a window, in both directions; 1 where they are neighbours (Yu and Koltun 2016,
    /// <https://arxiv.org/abs/1511.07122>).
    pub dilation: usize,
    /// The channels and filters fall into so many groups, and a filter sees the channels of its group only.
    pub groups: usize,
    /// What happens at the border.
    pub padding: Padding,
    /// Whether its first filters begin as the identity on their channels (Zagoruyko and Komodakis 2017, <https://arxiv.org/abs/1706.00388>),
    /// so that an untrained layer passes on what comes in.
    pub dirac: bool,
    /// Applied to each output.
    pub activation: Activation,
}

impl Convolution {
    /// Rows and columns from a window's first point to its last.
    pub(crate) fn extent(&self) -> (usize, usize) {
        let along = |points: usize| points.saturating_sub(1) * self.dilation + 1;
        (along(self.kernel.0), along(self.kernel.1))
    }

    /// Filters and groups, once the number of channels is known.
    pub(crate) fn of_channels(&self, channels: usize) -> (usize, usize) {
        self.filters.map_or((channels, channels), |filters| (filters, self.groups))
    }
}

/// Batch normalisation with a learned scale and shift (Ioffe and Szegedy 2015, <https://arxiv.org/abs/1502.03167>).
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNormalisation {
    /// Whether the scale is learned; else it stays one.
    pub scale: bool,
    /// How much of the running statistics a step replaces, from above 0 to 1.
    pub momentum: f32,
    /// Added to the variance before its root.
    pub epsilon: f32,
    /// Applied to each output.
    pub activation: Activation,
}

impl Default for BatchNormalisation {
    /// As in PyTorch.
    fn default() -> Self {
        BatchNormalisation { scale: true, momentum: 0.1, epsilon: 1e-5, activation: Activation::None }
    }
}

/// Windows whose values become one, channel by channel. What does not fill a window is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pooling {
    /// Of its windows: squares of an image, or steps of a series.
    pub axes: Axes,
    /// What a window gives.
    pub kind: PoolKind,
    /// The side of a window.
    pub window: usize,
    /// Step between windows.
    pub stride: usize,
}

impl Pooling {
    /// Rows and columns of a window.
    pub(crate) fn sides(&self) -> (usize, usize) {
        (if self.axes == Axes::Series { 1 } else { self.window }, self.window)
    }
}

/// What a window of values gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolKind {
    /// Its largest value.
    Maximum,
    /// The mean of its values.
    Mean,
}

/// One layer of a network.
///
/// It is written as a line of words; [`LayerSpec::from_str`](std::str::FromStr) reads them and `Display` gives the canonical form:
///
/// | text | layer |
/// |---|---|
/// | `conv 32 3x3 relu` | 32 filters of 3 rows × 3 columns, then ReLU |
/// | `conv 64 3x3 stride 2 same relu` | with a stride and zero padding |
/// | `conv 64 3x3 dilation 2 groups 4` | with points two apart; each filter sees a quarter of the channels |
/// | `depthwise 3x3 same relu` | one filter a channel, which sees that channel only |
/// | `conv1d 32 5 causal relu`, `depthwise1d 5` | along a series: an image of one row |
/// | `pool 2`, `pool 3 stride 2` | maximum over windows; the stride is the window unless said |
/// | `avgpool 2` | mean over windows |
/// | `globalpool`, `globalmaxpool` | mean of each channel over the whole image, of any size; maximum, over one of at most 15 × 15 |
/// | `pool1d 2`, `avgpool1d 2` | the same along a series |
/// | `series 128x6` | takes 768 features as 128 steps of 6 channels, step after step |
/// | `dense 64 relu` | fully connected; flattens an image that reaches it |
/// | `dropout 0.5` | drops half of the values while training |
/// | `batchnorm`, `batchnorm relu` | normalises each channel over the batch |
/// | `batchnorm noscale momentum 0.4 epsilon 1e-12` | with a scale that stays one, and other constants than PyTorch's |
/// | `conv 64 3x3 same dirac` | begins as the identity on the first channels |
/// | `whiten 2x2 bias 3 epsilon 0.02 gelu` | first: filters fitted to the train split, which take patches to values without correlation; only a bias learns, for three epochs |
///
/// A [`Residual`] block is a table: `{ residual = ["conv 64 3x3 same relu", "conv 64 3x3 same"], activation = "relu" }`.
#[derive(Clone, Debug, PartialEq)]
pub enum LayerSpec {
    /// `conv`, `depthwise`, `conv1d`, `depthwise1d`.
    Conv(Convolution),
    /// `pool`, `avgpool`, `pool1d`, `avgpool1d`.
    Pool(Pooling),
    /// `globalpool`, `globalmaxpool`: of each channel over the whole image.
    GlobalPool(PoolKind),
    /// Takes a list of features as a series, an image of one row: `[1, steps, channels]`. Nothing is computed.
    Series {
        /// Steps in time.
        steps: usize,
        /// Values of each.
        channels: usize,
    },
    /// A fully connected layer with a bias.
    Dense {
        /// Number of outputs.
        units: usize,
        /// Begins with all weights zero, rather than random ones: for a last layer, which then says at first that all classes are alike.
        zeros: bool,
        /// Applied to each output.
        activation: Activation,
    },
    /// Sets a share of the values to zero while training and scales the others by `1 / (1 - rate)`; nothing at inference
    /// (Srivastava et al. 2014).
    Dropout {
        /// The share that is dropped, from 0 to below 1.
        rate: f32,
    },
    /// `batchnorm`.
    BatchNorm(BatchNormalisation),
    /// A first convolution that is fitted to the train split and not learned: its filters are the eigenvectors of the patches, scaled to unit
    /// variance, with both signs ([`Network::fit_whitening`](crate::Network::fit_whitening)).
    Whiten {
        /// Rows and columns of a patch.
        kernel: (usize, usize),
        /// How many epochs its bias is learned for; all if absent.
        bias_epochs: Option<u32>,
        /// Added to each variance before its root: what varies less is noise, and is not magnified.
        epsilon: f32,
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
