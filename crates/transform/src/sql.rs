//! polars SQL, held to expressions that look at one row alone.
//!
//! What a user derives in training is replayed at apply on rows that come one file at a time, perhaps one row at a
//! time. An average, a window or a sort would then see other rows than it saw in training (and, in training, the test
//! rows). So only what is known to work row by row is let through, and the rest is refused by name.

use std::collections::{BTreeMap, BTreeSet};

use artifact::{StageError, config};
use polars::prelude::*;
use polars::sql::{SQLContext, sql_expr};

/// The name of the table in a `sql = "SELECT … FROM data"`.
pub const TABLE: &str = "data";

/// Which raw columns each output column is computed from.
pub type Origins = BTreeMap<String, BTreeSet<String>>;

/// Parses one expression and checks that it looks at its own row only.
///
/// # Errors
/// SQL that cannot be read, or an aggregate, window or other function over several rows.
pub fn expression(what: &str, text: &str) -> Result<Expr, StageError> {
    let expression = sql_expr(text).map_err(|error| {
        StageError::new(format!("{what} is no SQL expression that can be read: {text}")).because(&error).help(
            "write one expression, such as torque * speed; quote column names with spaces or brackets: \"Torque [Nm]\" * \"Rotational speed [rpm]\"",
        )
    })?;
    refuse_other_rows(what, text, &expression)?;
    Ok(expression)
}

/// The columns that an expression reads.
pub fn columns(expression: &Expr) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for node in expression {
        if let Expr::Column(name) = node {
            names.insert(name.to_string());
        }
    }
    names
}

/// Checks that every column an expression reads is there.
///
/// # Errors
/// Names the first that is not, with the nearest name that is.
pub fn check_columns<'a>(what: &str, expression: &Expr, known: impl Iterator<Item = &'a str> + Clone) -> Result<(), StageError> {
    match columns(expression).iter().find(|name| known.clone().all(|one| one != *name)) {
        Some(name) => {
            Err(StageError::new(format!("{what} reads the column `{name}`, which does not exist")).help(config::suggest(name, known)))
        }
        None => Ok(()),
    }
}

/// Runs a `SELECT … FROM data` that must keep every row; gives the result and each output's origins.
///
/// # Errors
/// SQL that cannot be read or run, or that is no row-by-row SELECT.
pub fn select(text: &str, frame: DataFrame) -> Result<(DataFrame, Origins), StageError> {
    let rows = frame.height();
    let names: Vec<String> = frame.get_column_names().iter().map(ToString::to_string).collect();
    let failed = |error: &PolarsError| {
        let error_text = error.to_string();
        let unknown = error_text.split('"').nth(1).filter(|name| !names.iter().any(|known| known == name) && *name != TABLE);
        StageError::new(format!("failed to run the SQL: {text}")).because(error).help(match unknown {
            Some(name) => config::suggest(name, names.iter().map(String::as_str)),
            None => format!("the table is called {TABLE}; quote column names with spaces or brackets: \"Torque [Nm]\""),
        })
    };
    let mut context = SQLContext::new();
    context.register(TABLE, frame.lazy());
    let lazy = context.execute(text).map_err(|error| failed(&error))?;
    let origins = origins(text, &lazy.logical_plan)?;
    let result = lazy.collect().map_err(|error| failed(&error))?;
    if result.height() != rows {
        return Err(StageError::new(format!("the SQL gives {} rows for {rows}: {text}", result.height())).help(ROW_BY_ROW));
    }
    Ok((result, origins))
}

const ROW_BY_ROW: &str = "f is replayed on new data one row at a time, so each output may use only its own row: select expressions of columns, \
    without WHERE, GROUP BY, ORDER BY, joins, aggregates and windows; to leave rows out of training use `filter`";

/// Walks from the result back to the table; only projections may stand between.
fn origins(text: &str, plan: &DslPlan) -> Result<Origins, StageError> {
    let refuse = |what: &str| Err(StageError::new(format!("the SQL {what}: {text}")).help(ROW_BY_ROW));
    match plan {
        DslPlan::DataFrameScan { schema, .. } => {
            Ok(schema.iter_names().map(|name| (name.to_string(), BTreeSet::from([name.to_string()]))).collect())
        }
        DslPlan::IR { dsl, .. } => origins(text, dsl),
        DslPlan::Select { expr, input, .. } => project(text, expr, &origins(text, input)?, Origins::new()),
        DslPlan::HStack { exprs, input, .. } => {
            let below = origins(text, input)?;
            project(text, exprs, &below, below.clone())
        }
        DslPlan::Filter { .. } => refuse("leaves rows out (WHERE)"),
        DslPlan::GroupBy { .. } => refuse("groups rows (GROUP BY)"),
        DslPlan::Join { .. } => refuse("joins tables"),
        DslPlan::Sort { .. } => refuse("sorts rows (ORDER BY)"),
        DslPlan::Slice { .. } => refuse("cuts rows off (LIMIT)"),
        DslPlan::Distinct { .. } => refuse("drops equal rows (DISTINCT)"),
        _ => refuse("does more than compute columns from columns"),
    }
}

fn project(text: &str, expressions: &[Expr], below: &Origins, mut above: Origins) -> Result<Origins, StageError> {
    for expression in expressions {
        if let Expr::Selector(_) = expression {
            above.extend(below.clone());
            continue;
        }
        refuse_other_rows("the SQL", text, expression)?;
        let from = columns(expression).iter().filter_map(|name| below.get(name)).flatten().cloned().collect();
        above.insert(output_name(expression), from);
    }
    Ok(above)
}

/// The name polars gives the result: the alias, else the leftmost column.
fn output_name(expression: &Expr) -> String {
    match expression {
        Expr::Alias(_, name) | Expr::Column(name) => name.to_string(),
        Expr::Literal(_) => "literal".to_owned(),
        Expr::Cast { expr, .. } | Expr::KeepName(expr) => output_name(expr),
        Expr::BinaryExpr { left, .. } => output_name(left),
        Expr::Ternary { truthy, .. } => output_name(truthy),
        Expr::Function { input, .. } => input.first().map(output_name).unwrap_or_default(),
        _ => String::new(),
    }
}

fn refuse_other_rows(what: &str, text: &str, expression: &Expr) -> Result<(), StageError> {
    match other_rows(expression) {
        Some(found) => Err(StageError::new(format!("{what} uses {found}, which looks at other rows: {text}")).help(ROW_BY_ROW)),
        None => Ok(()),
    }
}

/// The first part of an expression that is not known to work row by row.
fn other_rows(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Column(_) | Expr::Literal(_) => None,
        Expr::Alias(inner, _) | Expr::KeepName(inner) => other_rows(inner),
        Expr::Cast { expr, .. } => other_rows(expr),
        Expr::BinaryExpr { left, right, .. } => other_rows(left).or_else(|| other_rows(right)),
        Expr::Ternary { predicate, truthy, falsy } => [predicate, truthy, falsy].into_iter().find_map(|part| other_rows(part)),
        Expr::Function { input, function } => match row_by_row(function) {
            true => input.iter().find_map(other_rows),
            false => Some(format!("`{function}`")),
        },
        // The list of `x IN ('a', 'b')`.
        Expr::Agg(AggExpr::Implode { input, .. }) if matches!(**input, Expr::Literal(_)) => None,
        Expr::Agg(_) => Some("an aggregate (AVG, SUM, MIN, MAX, COUNT, …)".to_owned()),
        Expr::Len => Some("COUNT(*)".to_owned()),
        Expr::Over { .. } => Some("a window (OVER)".to_owned()),
        Expr::SubPlan(..) => Some("a subquery".to_owned()),
        Expr::Selector(_) => Some("several columns at once".to_owned()),
        other => Some(format!("`{other}`")),
    }
}

fn row_by_row(function: &FunctionExpr) -> bool {
    use FunctionExpr as F;
    match function {
        F::Abs | F::Negate | F::Pow(_) | F::Trigonometry(_) | F::Atan2 | F::Sign | F::Log | F::Log1p | F::Exp => true,
        F::Round { .. } | F::RoundSF { .. } | F::Truncate { .. } | F::Floor | F::Ceil | F::Clip { .. } => true,
        F::FillNull | F::Coalesce | F::MaxHorizontal | F::MinHorizontal | F::SumHorizontal { .. } | F::MeanHorizontal { .. } => true,
        F::Boolean(function) => matches!(
            function,
            BooleanFunction::IsNull
                | BooleanFunction::IsNotNull
                | BooleanFunction::IsFinite
                | BooleanFunction::IsInfinite
                | BooleanFunction::IsNan
                | BooleanFunction::IsNotNan
                | BooleanFunction::IsIn { .. }
                | BooleanFunction::AllHorizontal
                | BooleanFunction::AnyHorizontal
                | BooleanFunction::Not
        ),
        // Without a stated format the first rows decide how all are read.
        F::StringExpr(StringFunction::Strptime(_, options)) => options.format.is_some(),
        F::StringExpr(function) => !matches!(function, StringFunction::ConcatVertical { .. }),
        F::TemporalExpr(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn table() -> DataFrame {
        df!("a" => [1.0, 2.0, 3.0], "Torque [Nm]" => [10.0, 20.0, 30.0], "kind" => ["x", "y", "x"]).unwrap()
    }

    #[test]
    fn an_expression_of_one_row_is_let_through() {
        for text in [
            "a * \"Torque [Nm]\"",
            "CASE WHEN kind = 'x' THEN 1 ELSE 0 END",
            "LN(ABS(a) + 1)",
            "COALESCE(a, 0.0)",
            "kind IN ('x', 'z')",
            "a BETWEEN 1 AND 2",
            "LENGTH(kind)",
            "SQRT(POW(a, 2))",
            "kind LIKE 'x%'",
            "GREATEST(a, \"Torque [Nm]\")",
            "NULLIF(a, 1.0)",
            "ROUND(a, 1)",
            "SIN(a)",
            "CAST(a AS VARCHAR)",
            "a IS NULL",
        ] {
            let expression = expression("`derive.x`", text).unwrap();
            let result = table().lazy().with_columns([expression.alias("x")]).collect();
            assert!(result.is_ok(), "{text}: {}", result.unwrap_err());
        }
    }

    #[test]
    fn what_looks_at_other_rows_is_refused_with_its_name() {
        for (text, word) in [
            ("a - AVG(a)", "aggregate"),
            ("SUM(a) OVER (PARTITION BY kind)", "window"),
            ("COUNT(*)", "COUNT"),
            ("a / MAX(a)", "aggregate"),
            ("LAG(a) OVER (ORDER BY a)", "`derive.x`"),
        ] {
            let error = expression("`derive.x`", text).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn a_select_tells_what_each_output_comes_from() {
        let (frame, origins) = select("SELECT *, a * \"Torque [Nm]\" AS power FROM data", table()).unwrap();
        assert_eq!(frame.get_column_names(), ["a", "Torque [Nm]", "kind", "power"]);
        assert_eq!(origins["power"], BTreeSet::from(["a".to_owned(), "Torque [Nm]".to_owned()]));
        assert_eq!(origins["kind"], BTreeSet::from(["kind".to_owned()]));
        let (frame, origins) = select("SELECT b + 1 AS c FROM (SELECT a * 2 AS b FROM data)", table()).unwrap();
        assert_eq!(frame.get_column_names(), ["c"]);
        assert_eq!(origins, Origins::from([("c".to_owned(), BTreeSet::from(["a".to_owned()]))]));
    }

    #[test]
    fn a_select_that_mixes_rows_is_refused() {
        for (text, word) in [
            ("SELECT * FROM data WHERE a > 1", "WHERE"),
            ("SELECT kind, COUNT(*) AS n FROM data GROUP BY kind", ""),
            ("SELECT a FROM data ORDER BY a", ""),
            ("SELECT a FROM data LIMIT 1", ""),
            ("SELECT DISTINCT kind FROM data", "DISTINCT"),
            ("SELECT a, AVG(a) AS m FROM data", "aggregate"),
            ("SELECT x.a FROM data x JOIN data y ON x.a = y.a", ""),
        ] {
            let error = select(text, table()).unwrap_err();
            assert!(error.to_string().contains(word) && error.help.is_some(), "{text}: {error}");
        }
    }

    #[test]
    fn an_unknown_column_comes_with_a_suggestion() {
        let error = select("SELECT \"Torque [N]\" FROM data", table()).unwrap_err();
        assert_eq!(error.help.as_deref(), Some("did you mean `Torque [Nm]`?"), "{error}");
        let parsed = expression("`derive.x`", "knd || 'a'").unwrap();
        let error = check_columns("`derive.x`", &parsed, ["a", "kind"].into_iter()).unwrap_err();
        assert!(error.to_string().contains("`knd`") && error.help.as_deref() == Some("did you mean `kind`?"));
    }

    #[test]
    fn broken_sql_is_shown_as_it_was_written() {
        assert!(expression("`derive.x`", "a * * b").unwrap_err().to_string().contains("a * * b"));
        assert!(select("SELEC a", table()).unwrap_err().to_string().contains("SELEC a"));
    }
}
