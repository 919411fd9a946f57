//! Writing HTML: what is not a literal of this program goes through [`Page::text`], which escapes it.

/// A page being written.
#[derive(Debug, Default)]
pub(super) struct Page(String);

impl Page {
    /// Markup. Literals only, so that no name, caption or error can become markup.
    pub(super) fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Text, also within the quotes of an attribute.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        for character in text.chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                other => self.0.push(other),
            }
        }
        self
    }

    /// A coordinate.
    pub(super) fn at(&mut self, number: f64) -> &mut Self {
        let text = format!("{number:.2}");
        let text = text.trim_end_matches('0').trim_end_matches('.');
        self.0.push_str(text);
        self
    }

    /// A cell of a table.
    pub(super) fn cell(&mut self, text: &str) -> &mut Self {
        let is_number = text
            .trim_start_matches(['−', '-', '+', '×', '<'])
            .starts_with(|c: char| c.is_ascii_digit());
        self.raw(if is_number { "<td class=\"n\">" } else { "<td>" });
        self.text(text).raw("</td>")
    }

    /// A head of a column.
    pub(super) fn head(&mut self, text: &str) -> &mut Self {
        self.raw("<th scope=\"col\">").text(text).raw("</th>")
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        let mut page = Page::default();
        page.raw("<p title=\"")
            .text("\" onload='x'")
            .raw("\">")
            .text("<script>&</script>")
            .raw("</p>");
        assert_eq!(
            page.finish(),
            "<p title=\"&quot; onload=&#39;x&#39;\">&lt;script&gt;&amp;&lt;/script&gt;</p>"
        );
    }

    #[test]
    fn coordinates_are_short() {
        let mut page = Page::default();
        page.at(1.0).raw(" ").at(0.125).raw(" ").at(120.0);
        assert_eq!(page.finish(), "1 0.12 120");
    }
}
