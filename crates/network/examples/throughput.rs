//! Images a second of the reference CNN (32×32×3; conv 32, pool, conv 64, pool, conv 64, dense 64, dense 10), training and forward.
//!
//! `RAYON_NUM_THREADS=2 cargo run --release -p episteme-network --example throughput [BATCH] [train|forward]` prints `name value unit`
//! lines; the value is the median of seven rounds. The batch is 64 unless said.

use std::time::Instant;

use network::{Architecture, Batch, Input, LossOptions, Network, Normalisation, Optimiser, OptimiserConfig, Shape};

/// As in the binaries.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const LAYERS: [&str; 7] = ["conv 32 3x3 relu", "pool 2", "conv 64 3x3 relu", "pool 2", "conv 64 3x3 relu", "dense 64 relu", "dense 10"];
const IMAGES: usize = 3_200;
const IMAGE: usize = 32 * 32 * 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let batch: usize = std::env::args().nth(1).map_or(Ok(64), |text| text.parse())?;
    let layers = LAYERS.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    let architecture = Architecture { input: Shape::Image { height: 32, width: 32, channels: 3 }, layers };
    let mut network = Network::new(&architecture, 7)?;
    let mut optimiser = Optimiser::new(&OptimiserConfig::default(), &network)?;
    let (bytes, labels) = examples();
    let normalisation = Normalisation::standard(&[0.5; 3], &[0.25; 3]);
    let input = |range: std::ops::Range<usize>| Input::Pixels {
        bytes: &bytes[range.start * IMAGE..range.end * IMAGE],
        normalisation: &normalisation,
    };
    let options = LossOptions::default();

    let only = std::env::args().nth(2);
    let wanted = |what: &str| only.as_deref().is_none_or(|only| only == what);

    let starts: Vec<usize> = (0..IMAGES / batch).map(|index| index * batch).collect();
    let images = (starts.len() * batch) as f64;
    if wanted("train") {
        let train = rate(images, || {
            for start in &starts {
                let range = *start..*start + batch;
                network.train_step(Batch { input: input(range.clone()), labels: &labels[range] }, &mut optimiser, &options)?;
            }
            Ok(())
        })?;
        println!("network_train_b{batch} {train:.0} images/s");
    }
    if wanted("forward") {
        let forward = rate(images, || {
            for start in &starts {
                network.logits(input(*start..*start + batch))?;
            }
            Ok(())
        })?;
        println!("network_forward_b{batch} {forward:.0} images/s");
    }
    println!("threads {} threads", rayon::current_num_threads());
    network.kernels().iter().for_each(|kernel| eprintln!("{kernel}"));
    Ok(())
}

/// Images a second, the median of seven rounds after one to warm up.
fn rate(images: f64, mut round: impl FnMut() -> Result<(), network::NetworkError>) -> Result<f64, network::NetworkError> {
    round()?;
    let mut rates = Vec::new();
    for _ in 0..7 {
        let start = Instant::now();
        round()?;
        rates.push(images / start.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    Ok(rates[rates.len() / 2])
}

/// Noise with a trace of the label in it, so that the activations are as sparse as a learning network's.
fn examples() -> (Vec<u8>, Vec<u32>) {
    let mut state = 7u64;
    let mut draw = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let labels: Vec<u32> = (0..IMAGES).map(|_| draw() % 10).collect();
    let pixel = |label: u32, index: usize, noise: u32| (noise % 200 + if index as u32 / 307 == label { 55 } else { 0 }) as u8;
    let bytes = labels.iter().flat_map(|label| (0..IMAGE).map(|index| pixel(*label, index, draw())).collect::<Vec<_>>()).collect();
    (bytes, labels)
}
