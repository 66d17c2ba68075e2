//! Forward passes agree with PyTorch's on the same weights to 1e-5 (fixtures: `fixtures/two_layers.py`, `fixtures/blocks.py`).
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use network::{Architecture, Input, Network, Shape};
use safetensors::{Dtype, tensor::TensorView};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    input: [usize; 3],
    layers: Vec<network::LayerSpec>,
    tensors: BTreeMap<String, Tensor>,
    examples: Vec<f32>,
    logits: Vec<f32>,
}

#[derive(Deserialize)]
struct Tensor {
    shape: Vec<usize>,
    values: Vec<f32>,
}

#[test]
fn two_layers_agree_with_pytorch_on_the_same_weights_to_a_hundred_thousandth() {
    agree(include_str!("fixtures/two_layers.json"), 3);
}

#[test]
fn residual_blocks_groups_dilations_and_series_agree_with_pytorch_on_the_same_weights() {
    agree(include_str!("fixtures/blocks.json"), 2);
}

fn agree(fixture: &str, count: usize) {
    let cases: Vec<Case> = serde_json::from_str(fixture).unwrap();
    assert_eq!(cases.len(), count);
    for case in cases {
        let [height, width, channels] = case.input;
        let architecture = Architecture { input: Shape::Image { height, width, channels }, layers: case.layers };
        let raw: BTreeMap<&String, Vec<u8>> = case.tensors.iter().map(|(name, tensor)| (name, bytes(&tensor.values))).collect();
        let view =
            |(name, tensor): (&String, &Tensor)| (name.clone(), TensorView::new(Dtype::F32, tensor.shape.clone(), &raw[name]).unwrap());
        let file = safetensors::serialize(case.tensors.iter().map(view), None).unwrap();
        let network = Network::from_safetensors(&architecture, 7, &file).unwrap();
        let logits = network.logits(Input::Floats(&case.examples)).unwrap();
        assert_eq!(logits.len(), case.logits.len());
        for (found, expected) in logits.iter().zip(&case.logits) {
            assert!((found - expected).abs() < 1e-5, "{:?}: {found} for {expected}", architecture.layers);
        }
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
