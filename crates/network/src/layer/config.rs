//! A layer in a config: a text, or a table for a residual block; and its JSON Schema for editors.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::{LayerSpec, Residual, text::KINDS};

impl Serialize for LayerSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            LayerSpec::Residual(residual) => residual.serialize(serializer),
            layer => serializer.collect_str(layer),
        }
    }
}

impl<'de> Deserialize<'de> for LayerSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrTable)
    }
}

struct TextOrTable;

impl<'de> Visitor<'de> for TextOrTable {
    type Value = LayerSpec;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a layer as a text, or a residual block as a table")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<LayerSpec, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<LayerSpec, M::Error> {
        Residual::deserialize(MapAccessDeserializer::new(map)).map(LayerSpec::Residual)
    }
}

impl JsonSchema for LayerSpec {
    fn schema_name() -> Cow<'static, str> {
        "LayerSpec".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                {
                    "type": "string",
                    "description": "One layer: `conv FILTERS ROWSxCOLUMNS [stride N] [dilation N] [groups N] [same] [dirac] [ACTIVATION]`, `depthwise ROWSxCOLUMNS …`, `pool SIDE [stride N]` (maximum), `avgpool SIDE [stride N]`, `globalpool`, `globalmaxpool`, `dense UNITS [zeros] [ACTIVATION]`, `dropout SHARE`, `batchnorm [noscale] [momentum SHARE] [epsilon NUMBER] [ACTIVATION]`; first of all `whiten ROWSxCOLUMNS [bias EPOCHS] [epsilon NUMBER] [ACTIVATION]`; along a series (an image of one row, or `series STEPSxCHANNELS` before it for a row of features) `conv1d FILTERS STEPS [causal] …`, `depthwise1d STEPS …`, `pool1d STEPS`, `avgpool1d STEPS`. ACTIVATION is relu, gelu, silu or none. The last layer is `dense CLASSES`.",
                    "pattern": format!("^\\s*({})(\\s|$)", KINDS.join("|")),
                    "examples": ["conv 32 3x3 relu", "conv 64 3x3 stride 2 same relu", "pool 2", "dense 64 relu", "dropout 0.5", "batchnorm relu", "dense 10"]
                },
                generator.subschema_for::<Residual>()
            ]
        })
    }
}
