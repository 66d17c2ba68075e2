#![allow(clippy::unwrap_used)]
use super::*;
use proptest::prelude::*;

fn reason(text: &str) -> String {
    text.parse::<LayerSpec>().unwrap_err().to_string()
}

#[test]
fn the_texts_of_the_manual_are_read() {
    let plain = Convolution {
        axes: Axes::Image,
        filters: Some(64),
        kernel: (3, 5),
        stride: 2,
        dilation: 1,
        groups: 1,
        padding: Padding::Same,
        dirac: false,
        activation: Activation::Relu,
    };
    assert_eq!("conv 64 3x5 stride 2 same dirac relu".parse(), Ok(LayerSpec::Conv(Convolution { dirac: true, ..plain.clone() })));
    let conv = LayerSpec::Conv(plain.clone());
    assert_eq!("conv 64 3x5 stride 2 same relu".parse(), Ok(conv.clone()));
    assert_eq!(" conv  64 3x5 same stride 2 relu ".parse(), Ok(conv));
    let grouped = Convolution { dilation: 3, groups: 4, ..plain.clone() };
    assert_eq!("conv 64 3x5 groups 4 stride 2 dilation 3 same relu".parse(), Ok(LayerSpec::Conv(grouped)));
    let depthwise = Convolution { filters: None, ..plain.clone() };
    assert_eq!("depthwise 3x5 stride 2 same relu".parse(), Ok(LayerSpec::Conv(depthwise)));
    let causal = Convolution { axes: Axes::Series, kernel: (1, 5), padding: Padding::Causal, ..plain };
    assert_eq!("conv1d 64 5 stride 2 causal relu".parse(), Ok(LayerSpec::Conv(causal.clone())));
    assert_eq!("depthwise1d 5 stride 2 causal relu".parse(), Ok(LayerSpec::Conv(Convolution { filters: None, ..causal })));
    let pool = |axes, kind, window, stride| Ok(LayerSpec::Pool(Pooling { axes, kind, window, stride }));
    assert_eq!("pool 2".parse(), pool(Axes::Image, PoolKind::Maximum, 2, 2));
    assert_eq!("pool 3 stride 2".parse(), pool(Axes::Image, PoolKind::Maximum, 3, 2));
    assert_eq!("avgpool 2".parse(), pool(Axes::Image, PoolKind::Mean, 2, 2));
    assert_eq!("pool1d 4 stride 2".parse(), pool(Axes::Series, PoolKind::Maximum, 4, 2));
    assert_eq!("series 128x6".parse(), Ok(LayerSpec::Series { steps: 128, channels: 6 }));
    assert_eq!("globalpool".parse(), Ok(LayerSpec::GlobalPool(PoolKind::Mean)));
    assert_eq!("globalmaxpool".parse(), Ok(LayerSpec::GlobalPool(PoolKind::Maximum)));
    assert_eq!("dense 10 none".parse(), Ok(LayerSpec::Dense { units: 10, zeros: false, activation: Activation::None }));
    assert_eq!("dense 10 zeros".parse(), Ok(LayerSpec::Dense { units: 10, zeros: true, activation: Activation::None }));
    assert_eq!("dropout 0.5".parse(), Ok(LayerSpec::Dropout { rate: 0.5 }));
    let norm = BatchNormalisation { activation: Activation::Relu, ..BatchNormalisation::default() };
    assert_eq!("batchnorm relu".parse(), Ok(LayerSpec::BatchNorm(norm.clone())));
    let other = BatchNormalisation { scale: false, momentum: 0.4, epsilon: 1e-12, ..norm };
    assert_eq!("batchnorm momentum 0.4 noscale epsilon 1e-12 relu".parse(), Ok(LayerSpec::BatchNorm(other)));
    let whiten = |epsilon| LayerSpec::Whiten { kernel: (2, 3), bias_epochs: Some(3), epsilon, activation: Activation::Gelu };
    assert_eq!("whiten 2x3 bias 3 gelu".parse(), Ok(whiten(5e-4)));
    assert_eq!("whiten 2x3 epsilon 0.02 bias 3 gelu".parse(), Ok(whiten(0.02)));
}

#[test]
fn a_wrong_word_is_named_with_what_was_probably_meant() {
    assert!(reason("conv 32 3x3 rellu").contains("`rellu` is not understood; did you mean `relu`?"));
    assert!(reason("conv2d 32 3x3").contains("did you mean `conv`?"));
    assert!(reason("Linear 10").contains("did you mean `dense`?"));
    assert!(reason("pol 2").contains("did you mean `pool`?"));
    assert!(reason("maxpool1d 2").contains("did you mean `pool1d`?"));
    assert!(reason("conv 8 3x3 dilated 2").contains("did you mean `dilation`?"));
    assert!(!reason("conv 8 3x3 cosal").contains("causal"), "that is for series");
    assert!(!reason("depthwise 3x3 group 2").contains("did you mean"), "each channel is a group already");
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
    assert!(reason("conv1d 32 3x3").contains("write how many steps it sees"));
    assert!(reason("batchnorm momentum 2").contains("`2` is not a momentum, from above 0 to 1"));
    assert!(reason("batchnorm epsilon 0").contains("`0` is not an epsilon, above 0"));
    assert!(reason("batchnorm noscail").contains("did you mean `noscale`?"));
    assert!(reason("whiten 2x2 bias").contains("the number of epochs"));
    assert!(reason("whiten 2x2 epsilon 0").contains("`0` is not an epsilon, above 0"));
    assert!(reason("series 128").contains("write STEPSxCHANNELS"));
    assert!(reason("series 128x0").contains("`128x0` is not the size of a series"));
    assert!(reason("depthwise").contains("the kernel is missing"));
    assert!(reason("conv 32 3x3 groups 0").contains("`0` is not the number of groups"));
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

#[test]
fn a_residual_block_is_a_table_and_its_text_is_toml() {
    let json = r#"{"residual":["conv 8 3x3 same relu","conv 8 3x3 same"],"shortcut":["conv 8 1x1"],"activation":"relu"}"#;
    let layer: LayerSpec = serde_json::from_str(json).unwrap();
    assert_eq!(serde_json::to_string(&layer).unwrap(), json);
    let text = r#"{ residual = ["conv 8 3x3 same relu", "conv 8 3x3 same"], shortcut = ["conv 8 1x1"], activation = "relu" }"#;
    assert_eq!(layer.to_string(), text);
    let least: LayerSpec = serde_json::from_str(r#"{"residual": ["batchnorm"]}"#).unwrap();
    assert_eq!(least.to_string(), r#"{ residual = ["batchnorm"] }"#);
    let nested: LayerSpec = serde_json::from_str(r#"{"residual": [{"residual": ["batchnorm"]}]}"#).unwrap();
    assert_eq!(nested.to_string(), r#"{ residual = [{ residual = ["batchnorm"] }] }"#);
}

#[test]
fn a_wrong_residual_block_is_told_apart() {
    let error = |json: &str| serde_json::from_str::<LayerSpec>(json).unwrap_err().to_string();
    assert!(error(r#"{"residual": ["conv 8"]}"#).contains("the kernel is missing"));
    assert!(error(r#"{"residual": ["batchnorm"], "skip": []}"#).contains("unknown field `skip`, expected one of `residual`, `shortcut`"));
    assert!(error(r#"{"shortcut": []}"#).contains("missing field `residual`"));
    assert!(error("3").contains("a layer as a text, or a residual block as a table"));
    assert!(reason("residual conv 8 3x3").contains("a residual block is a table"));
}

fn activations() -> impl Strategy<Value = Activation> {
    prop_oneof![Just(Activation::None), Just(Activation::Relu), Just(Activation::Gelu), Just(Activation::Silu)]
}

fn convolutions() -> impl Strategy<Value = Convolution> {
    let sizes = (proptest::option::of(1..512usize), 1..9usize, 1..9usize, 1..4usize, 1..4usize, 1..4usize);
    (sizes, any::<bool>(), 0..3usize, activations()).prop_map(
        |((filters, rows, columns, stride, dilation, groups), is_image, padding, activation)| {
            let axes = if is_image { Axes::Image } else { Axes::Series };
            Convolution {
                axes,
                filters,
                kernel: (if is_image { rows } else { 1 }, columns),
                stride,
                dilation,
                groups: if filters.is_some() { groups } else { 1 },
                padding: match padding {
                    0 => Padding::Valid,
                    1 if !is_image => Padding::Causal,
                    _ => Padding::Same,
                },
                dirac: stride == 1,
                activation,
            }
        },
    )
}

fn layers() -> impl Strategy<Value = LayerSpec> {
    let pool = |(is_image, is_mean, window, stride)| {
        let axes = if is_image { Axes::Image } else { Axes::Series };
        LayerSpec::Pool(Pooling { axes, kind: if is_mean { PoolKind::Mean } else { PoolKind::Maximum }, window, stride })
    };
    prop_oneof![
        convolutions().prop_map(LayerSpec::Conv),
        (any::<bool>(), any::<bool>(), 1..9usize, 1..9usize).prop_map(pool),
        Just(LayerSpec::GlobalPool(PoolKind::Mean)),
        Just(LayerSpec::GlobalPool(PoolKind::Maximum)),
        (1..999usize, 1..99usize).prop_map(|(steps, channels)| LayerSpec::Series { steps, channels }),
        (1..9999usize, any::<bool>(), activations()).prop_map(|(units, zeros, activation)| LayerSpec::Dense { units, zeros, activation }),
        (0.0..1.0f32).prop_map(|rate| LayerSpec::Dropout { rate }),
        (any::<bool>(), 1e-3..1.0f32, 1e-20..1.0f32, activations()).prop_map(|(scale, momentum, epsilon, activation)| {
            LayerSpec::BatchNorm(BatchNormalisation { scale, momentum, epsilon, activation })
        }),
        ((1..9usize, 1..9usize), proptest::option::of(1..99u32), 1e-20..1.0f32, activations())
            .prop_map(|(kernel, bias_epochs, epsilon, activation)| LayerSpec::Whiten { kernel, bias_epochs, epsilon, activation }),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(layer in layers()) {
        prop_assert_eq!(layer.to_string().parse::<LayerSpec>(), Ok(layer));
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "(conv|depthwise|conv1d|pool|dense|dropout)? ?[ -~]{0,20}") {
        let _ = text.parse::<LayerSpec>();
    }
}
