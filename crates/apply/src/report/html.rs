//! Small pieces of HTML.

/// Text as HTML shows it: no class name can become a tag or leave an attribute.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A titled part of the page.
pub fn section(id: &str, title: &str, lead: &str, body: &str) -> String {
    let lead = if lead.is_empty() { String::new() } else { format!("<p class=\"lead\">{lead}</p>\n") };
    format!("<section id=\"{id}\">\n<h2>{title}</h2>\n{lead}{body}\n</section>\n")
}

/// `12345` as `12,345`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

/// A share as a percentage with one or two decimals.
pub fn percent(share: f64) -> String {
    if (0.995..1.0).contains(&share) { format!("{:.2} %", share * 100.0) } else { format!("{:.1} %", share * 100.0) }
}

/// A number that is easy to read: some four significant digits, and a minus that is as wide as a plus.
pub fn number(value: f64) -> String {
    let size = match value.abs() {
        0.0 => "0".into(),
        size if size >= 10_000.0 => count(size.round() as u64),
        size if size >= 100.0 => format!("{size:.1}"),
        size if size >= 0.01 => format!("{size:.3}"),
        size => format!("{size:.1e}"),
    };
    if value < 0.0 { format!("−{size}") } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_name_cannot_become_a_tag() {
        assert_eq!(escape("<script>alert('x')&\"</script>"), "&lt;script&gt;alert(&#39;x&#39;)&amp;&quot;&lt;/script&gt;");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1000, 1234567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.5, 0.9951, 1.0].map(percent), ["50.0 %", "99.51 %", "100.0 %"]);
        assert_eq!([0.0, 0.0123, -0.0123, -250.25, -20_000.0].map(number), ["0", "0.012", "−0.012", "−250.2", "−20,000"]);
        assert_eq!(number(-0.00089), "−8.9e-4");
    }
}
