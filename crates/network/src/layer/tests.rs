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
