//! Fitting one feature on the train split.
//!
//! Values are sorted before anything is summed, so that f depends on which rows are in train, not on their order.

use std::collections::BTreeMap;

use artifact::StageError;
use polars::prelude::DataFrame;
use transform::feature::{Fill, MISSING, OTHER};
use transform::{CategoryEncoding, ColumnKind, Encoding, Feature, NumberEncoding, source};

use crate::cleaning::ColumnChange;
use crate::table_config::{Constant, Outliers, Scale, Strategy, Table};

/// A column's feature, none when it is left out, and what was done to the column.
pub type Fitted = (Option<Feature>, ColumnChange);

/// Fits one column of the frame; `train` are the rows to fit on.
///
/// # Errors
/// A strategy that does not fit the column's kind, too many categories, a kind that cannot become a feature.
pub fn column(config: &Table, frame: &DataFrame, name: &str, kind: ColumnKind, train: &[usize]) -> Result<Fitted, StageError> {
    let strategy = config.strategy(name, kind);
    if config.is_one_hot(name, kind) {
        return categories(config, frame, name, &strategy, train);
    }
    match kind {
        ColumnKind::Number | ColumnKind::Boolean => numbers(config, frame, name, &strategy, train),
        ColumnKind::Text => Err(StageError::new(format!("the text column `{name}` is not in `one_hot`, so it cannot become a feature"))
            .help(format!("add \"{name}\" to `one_hot` or to `drop`"))),
        ColumnKind::Date | ColumnKind::Datetime => {
            Err(StageError::new(format!("the column `{name}` is a {}, which is no feature by itself", kind.name())).help(format!(
                "add \"{name}\" to `drop`, and derive what matters of it, such as `derive = {{ month = 'EXTRACT(MONTH FROM \"{name}\")' }}`"
            )))
        }
    }
}

fn wrong_strategy(name: &str, strategy: &Strategy, needed: &str) -> StageError {
    let word = serde_json::to_string(strategy).unwrap_or_default();
    StageError::new(format!("`missing` says {word} for the column `{name}`, which holds {needed}")).help(match needed {
        "numbers" => "numbers take mean, median, mode, drop, fail or { constant = 0 }",
        _ => "categories take mode, category, drop, fail or { constant = \"word\" }",
    })
}

fn left_out(name: &str, why: String) -> Fitted {
    (None, ColumnChange { column: name.to_owned(), left_out: Some(why), ..ColumnChange::default() })
}

fn numbers(config: &Table, frame: &DataFrame, name: &str, strategy: &Strategy, train: &[usize]) -> Result<Fitted, StageError> {
    let values = source::numbers(frame, name)?;
    let mut present: Vec<f64> = train.iter().filter_map(|row| values[*row]).collect();
    present.sort_unstable_by(f64::total_cmp);
    if present.is_empty() {
        return Ok(left_out(name, "it has no value in the train split".to_owned()));
    }
    let clip = config.outliers.as_ref().filter(|_| more_than_two(&present)).map(|outliers| bounds(outliers, &present));
    let mut encoding = NumberEncoding { clip, fill: None, center: 0.0, spread: 1.0 };
    present.iter_mut().for_each(|value| *value = encoding.clipped(*value));
    if present.first() == present.last() {
        return Ok(left_out(name, format!("it has the same value ({}) in all of the train split", present[0])));
    }
    encoding.fill = match strategy {
        Strategy::Mean => Some(mean(&present)),
        Strategy::Median => Some(quantile(&present, 0.5)),
        Strategy::Mode => Some(mode(&present)),
        Strategy::Constant(Constant::Number(value)) if value.is_finite() => Some(*value),
        Strategy::Drop | Strategy::Fail => None,
        Strategy::Category | Strategy::Constant(_) => return Err(wrong_strategy(name, strategy, "numbers")),
    };
    let gaps = train.len() - present.len();
    present.extend(encoding.fill.iter().cycle().take(if encoding.fill.is_some() { gaps } else { 0 }));
    present.sort_unstable_by(f64::total_cmp);
    (encoding.center, encoding.spread) = match config.scale {
        Scale::Standard => (mean(&present), deviation(&present)),
        Scale::Minmax => (present[0], present[present.len() - 1] - present[0]),
        Scale::None => (0.0, 1.0),
    };
    if !(encoding.spread > 0.0 && encoding.spread.is_finite() && encoding.center.is_finite()) {
        return Err(StageError::new(format!(
            "the column `{name}` has values too large or too close to scale ({} to {})",
            present[0],
            present[present.len() - 1]
        ))
        .help("clip them with `outliers`, or derive a column in another unit"));
    }
    let change = ColumnChange {
        column: name.to_owned(),
        filled: values.iter().filter(|value| value.is_none()).count() as u64,
        clipped: values.iter().flatten().filter(|value| encoding.clipped(**value) != **value).count() as u64,
        ..ColumnChange::default()
    };
    Ok((Some(Feature { column: name.to_owned(), encoding: Encoding::Number(encoding) }), change))
}

/// Quantiles would wipe a rare flag out: 0.2 % of ones lie beyond the 0.999 quantile's side.
fn more_than_two(sorted: &[f64]) -> bool {
    sorted.chunk_by(|a, b| a == b).take(3).count() > 2
}

fn bounds(outliers: &Outliers, sorted: &[f64]) -> [f64; 2] {
    match (outliers.quantiles, outliers.deviations) {
        (Some([low, high]), _) => [quantile(sorted, low), quantile(sorted, high)],
        (None, deviations) => {
            let (mean, reach) = (mean(sorted), deviations.unwrap_or(f64::INFINITY) * deviation(sorted));
            [mean - reach, mean + reach]
        }
    }
}

/// The arithmetic mean.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard deviation of the population (divided by n), as scikit-learn's StandardScaler has it.
pub fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}

/// A quantile of sorted values, linear between neighbours (Hyndman and Fan 1996, type 7; NumPy's default).
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// The most frequent of sorted values; the smallest of those that tie.
pub fn mode(sorted: &[f64]) -> f64 {
    let mut best = (0, f64::NAN);
    for run in sorted.chunk_by(|a, b| a == b) {
        if run.len() > best.0 {
            best = (run.len(), run[0]);
        }
    }
    best.1
}

fn categories(config: &Table, frame: &DataFrame, name: &str, strategy: &Strategy, train: &[usize]) -> Result<Fitted, StageError> {
    let values = source::words(frame, name)?;
    let mut counts = BTreeMap::<String, usize>::new();
    let mut gaps = 0;
    for row in train {
        match &values[*row] {
            Some(value) => *counts.entry(value.clone()).or_default() += 1,
            None => gaps += 1,
        }
    }
    // The first of those that tie, in the order of the words.
    let Some(most) = counts.iter().max_by(|a, b| a.1.cmp(b.1).then(b.0.cmp(a.0))).map(|(word, _)| word.clone()) else {
        return Ok(left_out(name, "it has no value in the train split".to_owned()));
    };
    let fill = match strategy {
        Strategy::Mode => Fill::With(most.clone()),
        Strategy::Category if gaps > 0 => Fill::Own,
        // None is missing in train: nothing can be learnt from a column for it, and later ones are unseen.
        Strategy::Category => Fill::With(MISSING.to_owned()),
        Strategy::Constant(Constant::Text(word)) => Fill::With(word.clone()),
        Strategy::Constant(Constant::Number(number)) => Fill::With(transform::raw::number_text(*number)),
        Strategy::Drop | Strategy::Fail => Fill::Refuse,
        Strategy::Mean | Strategy::Median => return Err(wrong_strategy(name, strategy, "categories")),
    };
    if let (Fill::With(word), Strategy::Constant(_)) = (&fill, strategy) {
        *counts.entry(word.clone()).or_default() += gaps;
    }
    let categories: Vec<String> =
        counts.iter().filter(|(_, count)| **count >= config.min_count.max(1)).map(|(word, _)| word.clone()).collect();
    let other = counts.values().any(|count| (1..config.min_count).contains(count));
    if categories.len() > config.max_categories {
        return Err(too_many(config, name, &categories));
    }
    let encoding = CategoryEncoding { categories, other, fill };
    let unseen = values.iter().flatten().filter(|word| !counts.contains_key(word.as_str())).count() as u64;
    let change = ColumnChange {
        column: name.to_owned(),
        filled: values.iter().filter(|value| value.is_none()).count() as u64,
        unseen,
        ..ColumnChange::default()
    };
    let feature = Feature { column: name.to_owned(), encoding: Encoding::OneHot(encoding) };
    match feature.width() {
        0 | 1 => Ok(left_out(name, format!("it has one category ({most}) in all of the train split"))),
        _ => Ok((Some(feature), change)),
    }
}

fn too_many(config: &Table, name: &str, categories: &[String]) -> StageError {
    let numeric = categories.iter().filter(|word| word.parse::<f64>().is_ok()).count();
    let shown: Vec<&str> = categories.iter().take(4).map(String::as_str).collect();
    let help = match numeric * 10 >= categories.len() * 9 {
        true => format!("its values look like numbers: say `types = {{ \"{name}\" = \"number\" }}`"),
        false => format!(
            "add \"{name}\" to `drop` if it names or describes single rows; else raise `max_categories`, or set `min_count` so that rare categories share one column `{name}={OTHER}`"
        ),
    };
    StageError::new(format!(
        "the column `{name}` has {} categories ({}, …), and {} are allowed",
        categories.len(),
        shown.join(", "),
        config.max_categories
    ))
    .help(help)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use polars::prelude::df;

    use super::*;

    fn config(toml: &str) -> Table {
        toml::from_str(&format!("input = 'x'\nlabel = 'y'\n{toml}")).unwrap()
    }

    fn number(toml: &str, values: &[Option<f64>], train: &[usize]) -> NumberEncoding {
        let frame = df!("x" => values).unwrap();
        match column(&config(toml), &frame, "x", ColumnKind::Number, train).unwrap().0.unwrap().encoding {
            Encoding::Number(number) => number,
            Encoding::OneHot(_) => panic!("a number"),
        }
    }

    fn category(toml: &str, values: &[Option<&str>]) -> CategoryEncoding {
        let frame = df!("x" => values).unwrap();
        let train: Vec<usize> = (0..values.len()).collect();
        match column(&config(toml), &frame, "x", ColumnKind::Text, &train).unwrap().0.unwrap().encoding {
            Encoding::OneHot(category) => category,
            Encoding::Number(_) => panic!("categories"),
        }
    }

    #[test]
    fn statistics_agree_with_the_published_definitions() {
        // numpy.quantile([1, 2, 4, 8, 16], [.1, .5, .9]) = 1.4, 4.0, 12.8; numpy.std = 5.455272678794342
        let values = [1.0, 2.0, 4.0, 8.0, 16.0];
        assert_eq!([0.0, 0.5, 1.0].map(|share| quantile(&values, share)), [1.0, 4.0, 16.0]);
        assert!((quantile(&values, 0.1) - 1.4).abs() < 1e-12 && (quantile(&values, 0.9) - 12.8).abs() < 1e-12);
        assert!((deviation(&values) - 5.455_272_678_794_342).abs() < 1e-12);
        assert_eq!((mean(&values), mode(&[1.0, 2.0, 2.0, 3.0, 3.0])), (6.2, 2.0));
    }

    #[test]
    fn only_train_rows_are_looked_at() {
        let fitted = number("", &[Some(1.0), Some(3.0), Some(1000.0), None], &[0, 1]);
        assert_eq!((fitted.fill, fitted.center, fitted.spread), (Some(2.0), 2.0, 1.0));
    }

    #[test]
    fn filled_values_count_in_the_mean_and_the_deviation() {
        let fitted = number("missing = { numbers = { constant = 9 } }", &[Some(0.0), Some(6.0), None], &[0, 1, 2]);
        assert_eq!((fitted.fill, fitted.center), (Some(9.0), 5.0));
        assert!((fitted.spread - (42.0f64 / 3.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn the_order_of_rows_does_not_change_a_bit() {
        let values: Vec<Option<f64>> = (0..1000).map(|row| Some(f64::from(row * 7919 % 1000).sqrt() * 1e6 + 1e-6)).collect();
        let backwards: Vec<Option<f64>> = values.iter().rev().copied().collect();
        let train: Vec<usize> = (0..1000).collect();
        assert_eq!(number("", &values, &train), number("", &backwards, &train));
    }

    #[test]
    fn bounds_come_from_quantiles_or_deviations() {
        let values: Vec<Option<f64>> = (0..=100).map(|value| Some(f64::from(value))).collect();
        let train: Vec<usize> = (0..=100).collect();
        assert_eq!(number("outliers = { quantiles = [0.05, 0.95] }", &values, &train).clip, Some([5.0, 95.0]));
        let [low, high] = number("outliers = { deviations = 1 }", &values, &train).clip.unwrap();
        assert!((low + high - 100.0).abs() < 1e-9 && (high - 50.0 - 850.0f64.sqrt()).abs() < 1e-9);
        let flag: Vec<Option<f64>> = (0..1000).map(|row| Some(f64::from(u8::from(row == 0)))).collect();
        assert_eq!(number("outliers = { quantiles = [0.01, 0.99] }", &flag, &(0..1000).collect::<Vec<_>>()).clip, None);
    }

    #[test]
    fn minmax_and_none_scale_as_they_say() {
        let values = [Some(2.0), Some(4.0), Some(10.0)];
        let fitted = number("scale = 'minmax'", &values, &[0, 1, 2]);
        assert_eq!((fitted.center, fitted.spread), (2.0, 8.0));
        let fitted = number("scale = 'none'", &values, &[0, 1, 2]);
        assert_eq!((fitted.center, fitted.spread), (0.0, 1.0));
    }

    #[test]
    fn a_column_that_tells_nothing_is_left_out_with_its_reason() {
        let frame = df!("same" => [5.0, 5.0, 7.0], "empty" => [None, None, Some(1.0)], "word" => ["a", "a", "b"]).unwrap();
        for (name, kind, why) in [
            ("same", ColumnKind::Number, "same value (5)"),
            ("empty", ColumnKind::Number, "no value"),
            ("word", ColumnKind::Text, "one category (a)"),
        ] {
            let (feature, change) = column(&config(""), &frame, name, kind, &[0, 1]).unwrap();
            assert!(feature.is_none() && change.left_out.unwrap().contains(why));
        }
    }

    #[test]
    fn rare_categories_share_a_column_and_missing_ones_can_have_their_own() {
        let values = [Some("a"), Some("a"), Some("b"), Some("b"), Some("c"), None];
        let fitted = category("min_count = 2\nmissing = { texts = 'category' }", &values);
        assert_eq!((fitted.categories, fitted.other, fitted.fill), (vec!["a".to_owned(), "b".to_owned()], true, Fill::Own));
        let fitted = category("", &values);
        assert_eq!((fitted.categories.len(), fitted.other, fitted.fill), (3, false, Fill::With("a".into())));
        let fitted = category("missing = { columns = { x = { constant = 'none' } } }", &values);
        assert_eq!(fitted.categories, ["a", "b", "c", "none"]);
    }

    #[test]
    fn too_many_categories_are_refused_with_what_to_do() {
        let words: Vec<String> = (0..100).map(|row| format!("M{row}")).collect();
        let frame = df!("Product ID" => &words, "n" => (0..100).map(|row| row.to_string()).collect::<Vec<_>>()).unwrap();
        let train: Vec<usize> = (0..100).collect();
        let error = column(&config(""), &frame, "Product ID", ColumnKind::Text, &train).unwrap_err();
        assert!(error.to_string().contains("100 categories") && error.help.unwrap().contains("`drop`"));
        let error = column(&config(""), &frame, "n", ColumnKind::Text, &train).unwrap_err();
        assert!(error.help.unwrap().contains("\"n\" = \"number\""));
    }

    #[test]
    fn a_strategy_that_does_not_fit_is_refused() {
        let frame = df!("x" => [1.0, 2.0], "w" => ["a", "b"]).unwrap();
        let text = column(&config("missing = { numbers = 'category' }"), &frame, "x", ColumnKind::Number, &[0, 1]).unwrap_err().to_string();
        assert!(text.contains("\"category\"") && text.contains("`x`"), "{text}");
        assert!(column(&config("missing = { texts = 'median' }"), &frame, "w", ColumnKind::Text, &[0, 1]).is_err());
    }
}
