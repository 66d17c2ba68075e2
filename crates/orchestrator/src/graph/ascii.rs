//! Stages as lanes, in plain ASCII: a line a stage, and a lane for what it gives until nobody takes it any more.
//!
//! ```text
//! *       clean
//! +-*     model        takes from clean, which others take too
//! +-+-*   predictions
//! *-'-'   report       the last to take from all three
//! ```

use crate::plan::Plan;

/// The whole drawing, ending in a line break.
pub fn ascii(plan: &Plan) -> String {
    let rows = lanes(plan);
    let width = rows.iter().map(String::len).max().unwrap_or_default();
    let names = plan.stages.iter().map(|stage| stage.name.len()).max().unwrap_or_default();
    let lines = rows.iter().zip(&plan.stages);
    lines
        .map(|(row, stage)| format!("{row:<width$}   {:<names$}  {} -> {}\n", stage.name, stage.stage.uses(), stage.stage.gives()))
        .collect()
}

/// Each stage's line, without its name.
pub fn lanes(plan: &Plan) -> Vec<String> {
    let last = last_takers(plan);
    let mut lanes: Vec<Option<usize>> = Vec::new();
    let mut rows = Vec::new();
    for (index, stage) in plan.stages.iter().enumerate() {
        let mut from: Vec<usize> = stage.upstream().filter_map(|from| lanes.iter().position(|lane| *lane == Some(from))).collect();
        from.sort_unstable();
        from.dedup();
        let closing: Vec<usize> =
            from.iter().copied().filter(|lane| lanes[*lane].is_some_and(|giver| last[giver] == Some(index))).collect();
        let own = closing.first().copied().unwrap_or_else(|| free_lane(&mut lanes));
        rows.push(row(&lanes, own, &from, &closing));
        closing.iter().for_each(|lane| lanes[*lane] = None);
        lanes[own] = last[index].map(|_| index);
    }
    rows
}

/// The last stage that takes from each; none where nobody does.
fn last_takers(plan: &Plan) -> Vec<Option<usize>> {
    let mut last = vec![None; plan.stages.len()];
    for (index, stage) in plan.stages.iter().enumerate() {
        stage.upstream().for_each(|from| last[from] = Some(index));
    }
    last
}

fn free_lane(lanes: &mut Vec<Option<usize>>) -> usize {
    lanes.iter().position(Option::is_none).unwrap_or_else(|| {
        lanes.push(None);
        lanes.len() - 1
    })
}

/// One line: the stage's star, a bar for each lane that passes, and a line to each lane it takes from.
fn row(lanes: &[Option<usize>], own: usize, from: &[usize], closing: &[usize]) -> String {
    let (left, right) = from.iter().fold((own, own), |(left, right), lane| (left.min(*lane), right.max(*lane)));
    let mut text = String::new();
    for (lane, giver) in lanes.iter().enumerate() {
        let within = left <= lane && lane <= right;
        text.push(match (lane == own, from.contains(&lane)) {
            (true, _) => '*',
            (_, true) => {
                if closing.contains(&lane) {
                    '\''
                } else {
                    '+'
                }
            }
            _ if giver.is_some() => '|',
            _ => {
                if within {
                    '-'
                } else {
                    ' '
                }
            }
        });
        text.push(if left <= lane && lane < right { '-' } else { ' ' });
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_joins_a_stage_with_all_it_takes_from() {
        let lanes = [Some(0), Some(1), Some(2), None];
        assert_eq!(row(&lanes, 3, &[0, 2], &[]), "+-|-+-*");
        assert_eq!(row(&lanes, 0, &[0, 1, 2], &[0, 1, 2]), "*-'-'");
        assert_eq!(row(&lanes, 3, &[], &[]), "| | | *");
    }
}
