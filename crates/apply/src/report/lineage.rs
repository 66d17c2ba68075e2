//! The way back to the raw data, drawn from the manifests.

use std::collections::BTreeMap;
use std::fmt::Write;

use artifact::Digest;
use artifact::manifest::{Ancestor, Manifest};

use super::html::{count, escape};

const NODE: (f64, f64) = (150.0, 54.0);
const GAP: (f64, f64) = (46.0, 18.0);

/// A directed graph from left to right: raw data first.
pub fn graph(manifests: &[Manifest]) -> String {
    let nodes = nodes(manifests);
    let mut depths = BTreeMap::new();
    for digest in nodes.keys() {
        depth(digest, &nodes, &mut depths);
    }
    let mut columns: BTreeMap<usize, Vec<Digest>> = BTreeMap::new();
    depths.iter().for_each(|(digest, depth)| columns.entry(*depth).or_default().push(*digest));
    let tallest = columns.values().map(Vec::len).max().unwrap_or_default() as f64;
    let height = tallest * (NODE.1 + GAP.1) - GAP.1 + 4.0;
    let width = columns.len() as f64 * (NODE.0 + GAP.0) - GAP.0 + 4.0;
    let mut places = BTreeMap::new();
    for (column, digests) in &columns {
        let used = digests.len() as f64 * (NODE.1 + GAP.1) - GAP.1;
        for (row, digest) in digests.iter().enumerate() {
            places.insert(*digest, (2.0 + *column as f64 * (NODE.0 + GAP.0), (height - used) / 2.0 + row as f64 * (NODE.1 + GAP.1)));
        }
    }
    let mut svg = format!(
        "<svg class=\"lineage\" viewBox=\"0 0 {width} {height}\" style=\"max-width:{width}px\" role=\"img\" aria-label=\"lineage\"><title>From raw data to predictions</title>"
    );
    for (digest, node) in &nodes {
        for from in node.inputs.values().flatten().filter_map(|parent| places.get(parent)) {
            let (x1, y1) = (from.0 + NODE.0, from.1 + NODE.1 / 2.0);
            let (x2, y2) = (places[digest].0, places[digest].1 + NODE.1 / 2.0);
            let bend = (x2 - x1) / 2.0;
            let _ = write!(
                svg,
                "<path class=\"edge\" d=\"M{x1:.0} {y1:.0} C{:.0} {y1:.0} {:.0} {y2:.0} {x2:.0} {y2:.0}\"/>",
                x1 + bend,
                x2 - bend
            );
        }
    }
    for (digest, node) in &nodes {
        let (x, y) = places[digest];
        let rows = node.rows.map(|rows| format!(" · {} rows", count(rows))).unwrap_or_default();
        let _ = write!(
            svg,
            "<g><title>{}</title><rect class=\"node {kind}\" x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" rx=\"7\"/>\
             <text class=\"uses\" x=\"{tx}\" y=\"{}\">{}</text><text class=\"tick\" x=\"{tx}\" y=\"{}\">{kind}{rows}</text><text class=\"tick mono\" x=\"{tx}\" y=\"{}\">{}</text></g>",
            escape(&node.config.to_string()),
            NODE.0,
            NODE.1,
            y + 18.0,
            escape(&node.uses),
            y + 33.0,
            y + 47.0,
            digest.short(),
            kind = node.kind,
            tx = x + 10.0,
        );
    }
    svg + "</svg>"
}

/// All artifacts of these lineages, once each.
fn nodes(manifests: &[Manifest]) -> BTreeMap<Digest, Ancestor> {
    let all = manifests
        .iter()
        .flat_map(|manifest| manifest.lineage.iter().map(|ancestor| (ancestor.digest.unwrap_or(manifest.digest), ancestor.clone())));
    all.collect()
}

/// How many artifacts stand before this one, along the longest way.
fn depth(digest: &Digest, nodes: &BTreeMap<Digest, Ancestor>, known: &mut BTreeMap<Digest, usize>) -> usize {
    if let Some(depth) = known.get(digest) {
        return *depth;
    }
    // Parents that are not in the lineage (a plain folder) count for nothing. A digest cannot depend on itself.
    let parents: Vec<Digest> = nodes[digest].inputs.values().flatten().filter(|parent| nodes.contains_key(*parent)).copied().collect();
    let found = parents.iter().map(|parent| depth(parent, nodes, known) + 1).max().unwrap_or_default();
    known.insert(*digest, found);
    found
}
