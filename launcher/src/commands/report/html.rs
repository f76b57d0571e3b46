//! Parts of a page. Pure.

/// The page's own rules.
const STYLE: &str = include_str!("page.css");

/// Text as it may stand in HTML and SVG, in attributes too. Control characters, which XML does not know, are shown as such.
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            control if control.is_control() && control != '\n' && control != '\t' => safe.push('\u{fffd}'),
            other => safe.push(other),
        }
    }
    safe
}

/// A whole page, which needs nothing from anywhere.
pub fn page(title: &str, body: &str, chart_style: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{}</title>\n<style>\n{STYLE}{chart_style}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escaped(title),
    )
}

/// A section with a heading; nothing where there is nothing in it.
pub fn section(heading: &str, content: &str) -> String {
    if content.is_empty() {
        return String::new();
    }
    format!("<section>\n<h2>{}</h2>\n{content}</section>\n", escaped(heading))
}

/// A table with a caption for whoever cannot see where it stands. Cells are text.
pub fn table(caption: &str, heads: &[&str], rows: &[Vec<String>]) -> String {
    let head: String = heads.iter().map(|head| format!("<th scope=\"col\">{}</th>", escaped(head))).collect();
    let row = |cells: &Vec<String>| {
        let mut cells = cells.iter().map(|cell| escaped(cell));
        let first = cells.next().unwrap_or_default();
        let rest: String = cells.map(|cell| format!("<td>{cell}</td>")).collect();
        format!("<tr><th scope=\"row\">{first}</th>{rest}</tr>\n")
    };
    let body: String = rows.iter().map(row).collect();
    let caption = escaped(caption);
    format!(
        "<div class=\"scroll\"><table><caption class=\"unseen\">{caption}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )
}

/// Facts: a name and its value each.
pub fn facts(rows: &[(String, String)]) -> String {
    let row = |(name, value): &(String, String)| {
        format!("<div><dt>{}</dt><dd>{}</dd></div>\n", escaped(name), escaped(value))
    };
    format!("<dl class=\"facts\">\n{}</dl>\n", rows.iter().map(row).collect::<String>())
}

/// Notes to the reader; nothing without any.
pub fn notes(notes: &[String]) -> String {
    if notes.is_empty() {
        return String::new();
    }
    let items: String = notes.iter().map(|note| format!("<li>{}</li>\n", escaped(note))).collect();
    format!("<ul class=\"notes\">\n{items}</ul>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        assert_eq!(escaped("<script>\"&'\u{1b}"), "&lt;script&gt;&quot;&amp;&#39;\u{fffd}");
        let table = table("a", &["<b>"], &[vec!["<i>".into(), "<u>".into()]]);
        assert!(table.contains("&lt;b&gt;") && table.contains("&lt;i&gt;") && table.contains("&lt;u&gt;"));
        assert_eq!(section("empty", ""), "");
        assert!(page("<t>", "", "").contains("<title>&lt;t&gt;</title>"));
    }
}
