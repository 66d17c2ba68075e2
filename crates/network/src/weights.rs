//! Tensors to and from the safetensors format: little-endian f32, in the layouts that [`Network::to_safetensors`] documents.
//!
//! [`Network::to_safetensors`]: crate::Network::to_safetensors

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::error::NetworkError;

/// A named tensor on its way to a file.
pub(crate) struct TensorData {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// One file of all tensors; the format orders them by name, so equal tensors give equal bytes.
pub(crate) fn write_tensors(tensors: Vec<TensorData>) -> Result<Vec<u8>, NetworkError> {
    let raw: Vec<Vec<u8>> = tensors.iter().map(|tensor| tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect()).collect();
    let mut views = Vec::with_capacity(tensors.len());
    for (tensor, raw) in tensors.iter().zip(&raw) {
        views.push((tensor.name.as_str(), TensorView::new(Dtype::F32, tensor.shape.clone(), raw)?));
    }
    Ok(safetensors::serialize(views, None)?)
}

/// Reads the wanted tensors (name and shape) in their order.
///
/// All that is missing, mis-shaped or of another type is reported at once; so is a tensor that nobody asked for, since it
/// tells that the file belongs to another network.
pub(crate) fn read_tensors(bytes: &[u8], wanted: &[(String, Vec<usize>)]) -> Result<Vec<Vec<f32>>, NetworkError> {
    let file = SafeTensors::deserialize(bytes)?;
    let mut faults = Vec::new();
    let mut values = Vec::with_capacity(wanted.len());
    for (name, shape) in wanted {
        match file.tensor(name) {
            Err(_) => faults.push(format!("`{name}` of shape {shape:?} is missing")),
            Ok(view) if view.dtype() != Dtype::F32 => faults.push(format!("`{name}` is of type {:?}, not F32", view.dtype())),
            Ok(view) if view.shape() != shape => faults.push(format!("`{name}` has shape {:?}, the network needs {shape:?}", view.shape())),
            Ok(view) => values.push(view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
        }
    }
    let mut others: Vec<&str> = file.names().into_iter().filter(|name| !wanted.iter().any(|(wanted, _)| wanted == name)).collect();
    others.sort_unstable();
    faults.extend(others.into_iter().map(|name| format!("`{name}` belongs to no layer of this network")));
    if faults.is_empty() {
        return Ok(values);
    }
    Err(NetworkError::Weights(format!("the file belongs to another network: {}", faults.join("; "))))
}
