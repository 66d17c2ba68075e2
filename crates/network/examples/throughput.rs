//! Images a second of a network, training or forward, as `name value unit` lines; the value is the median of five rounds.
//!
//! `cargo run --release -p episteme-network --example throughput SHAPE BATCH train|forward LAYER…`, such as
//! `32x32x3 64 train "conv 32 3x3 relu" "pool 2" "dense 10"` (a residual block in JSON); or `peak`, the machine's dense arithmetic limit. Threads: `RAYON_NUM_THREADS`;
//! a GPU, where it was built with CUDA: `EPISTEME_DEVICE=cuda`; the precision: `EPISTEME_PRECISION` (fp32, tf32 or bf16). On a GPU, training is a
//! course over a set that lies on the GPU; forward, examples are taken there and logits brought back, one batch ahead.

use std::mem;
use std::time::Instant;

use network::{
    Architecture, Batch, Device, Input, LayerSpec, LossOptions, Network, Normalisation, Optimiser, OptimiserConfig, Precision, Set, Shape,
    Sight, peak_flops,
};

/// As in the binaries.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [shape, batch, mode, layers @ ..] = arguments.as_slice() else {
        println!("episteme_peak {:.1} GFLOP/s", peak_flops() / 1e9);
        return Ok(());
    };
    let sides: Vec<usize> = shape.split('x').map(str::parse).collect::<Result<_, _>>()?;
    let [height, width, channels] = sides[..] else { return Err("the shape is HEIGHTxWIDTHxCHANNELS".into()) };
    let batch: usize = batch.parse()?;
    let layers = layers.iter().map(|text| layer(text)).collect::<Result<_, _>>()?;
    let architecture = Architecture { input: Shape::Image { height, width, channels }, layers };
    let mut network = Network::new(&architecture, 7)?;
    let is_gpu = std::env::var_os("EPISTEME_DEVICE").is_some_and(|device| device == "cuda");
    let placement = network.place(if is_gpu { Device::Cuda } else { Device::Cpu }, precision()?)?;
    placement.note().iter().for_each(|note| eprintln!("{note}"));
    if !is_gpu {
        network.kernels().iter().for_each(|kernel| eprintln!("{kernel}"));
    }
    let (bytes, labels) = examples(batch, architecture.input.len(), network.classes() as u32);
    let normalisation = Normalisation::standard(&vec![0.5; channels], &vec![0.25; channels]);
    let input = Input::Pixels { bytes: &bytes, normalisation: &normalisation };
    let repeats = if is_gpu { (65_536 / batch).max(20) } else { (1_280 / batch).max(2) };
    let images = (repeats * batch) as f64;
    if mode == "train" && is_gpu {
        network.hold(Set { input, labels: &labels, cutout: 0, fill: &[] })?;
        let mut optimiser = Optimiser::new(&OptimiserConfig::default(), &network)?;
        let sights: Vec<Sight> = (0..batch as i32).map(|row| Sight { row, ..Sight::default() }).collect();
        network.begin_course(&optimiser, None, sights, &LossOptions::default())?;
        let rate = rate(images, || {
            (0..repeats).try_for_each(|_| network.step_in_course(std::iter::once(0..batch).collect(), &mut optimiser, None))?;
            network.course_so_far().map(drop)
        })?;
        println!("episteme_train {rate:.0} images/s");
    } else if mode == "train" {
        let mut optimiser = Optimiser::new(&OptimiserConfig::default(), &network)?;
        let options = LossOptions::default();
        let rate = rate(images, || {
            (0..repeats).try_for_each(|_| network.train_step(Batch { input, labels: &labels }, &mut optimiser, &options).map(drop))
        })?;
        println!("episteme_train {rate:.0} images/s");
    } else {
        let rate = rate(images, || {
            let mut before = network.begin(input)?;
            for _ in 1..repeats {
                mem::replace(&mut before, network.begin(input)?).logits()?;
            }
            before.logits().map(drop)
        })?;
        println!("episteme_forward {rate:.0} images/s");
    }
    Ok(())
}

fn precision() -> Result<Precision, Error> {
    let named = std::env::var("EPISTEME_PRECISION").unwrap_or_else(|_| "fp32".into());
    Ok(serde_json::from_value(named.into())?)
}

/// A layer as a text, or a residual block in JSON.
fn layer(text: &str) -> Result<LayerSpec, Error> {
    if text.starts_with('{') { Ok(serde_json::from_str(text)?) } else { Ok(text.parse()?) }
}

/// Images a second, the median of five rounds after one to warm up.
fn rate(images: f64, mut round: impl FnMut() -> Result<(), network::NetworkError>) -> Result<f64, network::NetworkError> {
    round()?;
    let mut rates = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        round()?;
        rates.push(images / start.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    Ok(rates[rates.len() / 2])
}

/// Noise with random labels, as the peers have.
fn examples(batch: usize, size: usize, classes: u32) -> (Vec<u8>, Vec<u32>) {
    let mut state = 7u64;
    let mut draw = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let labels = (0..batch).map(|_| draw() % classes).collect();
    ((0..batch * size).map(|_| draw() as u8).collect(), labels)
}
