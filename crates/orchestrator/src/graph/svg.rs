//! Stages as a picture: boxes in columns by their depth, and a curve for each input.

use crate::graph::depths;
use crate::plan::Plan;

/// Sizes in pixels.
const BOX: (usize, usize) = (190, 46);
const GAP: (usize, usize) = (60, 22);
const MARGIN: usize = 16;

/// A whole SVG document; it follows the reader's light or dark mode.
pub fn svg(plan: &Plan) -> String {
    let places = places(plan);
    let columns = places.iter().map(|(column, _)| column + 1).max().unwrap_or_default();
    let rows = places.iter().map(|(_, row)| row + 1).max().unwrap_or_default();
    let size = |count: usize, edge: usize, gap: usize| 2 * MARGIN + count * edge + count.saturating_sub(1) * gap;
    let (width, height) = (size(columns, BOX.0, GAP.0), size(rows, BOX.1, GAP.1));
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"14\">\n<title>{}</title>\n<style>{STYLE}</style>\n",
        escaped(&plan.name)
    );
    for (index, stage) in plan.stages.iter().enumerate() {
        for (key, from) in stage.inputs.iter().flat_map(|(key, all)| all.iter().map(move |from| (key, *from))) {
            text.push_str(&curve(corner(places[from]), corner(places[index]), key));
        }
    }
    for (stage, place) in plan.stages.iter().zip(&places) {
        let (x, y) = corner(*place);
        let (name, uses) = (escaped(&stage.name), escaped(stage.stage.uses()));
        text.push_str(&format!(
            "<g><rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" rx=\"8\"/><text x=\"{}\" y=\"{}\" font-weight=\"600\">{name}</text>\
             <text x=\"{}\" y=\"{}\" font-size=\"11\" class=\"uses\">{uses} → {}</text></g>\n",
            BOX.0,
            BOX.1,
            x + 12,
            y + 20,
            x + 12,
            y + 36,
            stage.stage.gives()
        ));
    }
    text.push_str("</svg>\n");
    text
}

const STYLE: &str = "rect{fill:#fff;stroke:#5b6b7b}path{fill:none;stroke:#8a99a8;stroke-width:1.5}text{fill:#1b2530}.uses{fill:#5b6b7b}\
@media(prefers-color-scheme:dark){rect{fill:#1b2530;stroke:#8a99a8}text{fill:#f2f5f7}.uses{fill:#aebac5}}";

/// Column and row of each stage. Within a column, a stage stands near what it takes from.
fn places(plan: &Plan) -> Vec<(usize, usize)> {
    let depths = depths(plan);
    let mut places = vec![(0, 0); plan.stages.len()];
    for column in 0..=depths.iter().max().copied().unwrap_or_default() {
        let mut here: Vec<usize> = (0..depths.len()).filter(|index| depths[*index] == column).collect();
        // Twice the mean row of the inputs, in whole numbers, so that the order is the same everywhere.
        here.sort_by_key(|index| {
            let rows: Vec<usize> = plan.stages[*index].upstream().map(|from| places[from].1).collect();
            2 * rows.iter().sum::<usize>() / rows.len().max(1)
        });
        here.iter().enumerate().for_each(|(row, index)| places[*index] = (column, row));
    }
    places
}

fn corner((column, row): (usize, usize)) -> (usize, usize) {
    (MARGIN + column * (BOX.0 + GAP.0), MARGIN + row * (BOX.1 + GAP.1))
}

fn curve((ax, ay): (usize, usize), (bx, by): (usize, usize), key: &str) -> String {
    let ((x1, y1), (x2, y2)) = ((ax + BOX.0, ay + BOX.1 / 2), (bx, by + BOX.1 / 2));
    let (c1, c2) = (x1 + GAP.0 / 2, x2 - GAP.0 / 2);
    format!("<path d=\"M{x1} {y1}C{c1} {y1} {c2} {y2} {x2} {y2}\"><title>{}</title></path>\n", escaped(key))
}

/// For text and attributes.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
