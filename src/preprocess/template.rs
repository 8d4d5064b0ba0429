//! Renders a base's own chat template (Jinja) as transformers does.
//! A template's source and messages enter, one text leaves. It must not know tokens.

use std::fs;
use std::io;
use std::path::Path;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;

use super::message::{ContentPart, Message};
use super::prompt::PromptError;
use super::special::SpecialTokens;

const NAME: &str = "chat_template";
const PROBE: &str = "norma probes the template";

/// How a template reads a message's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// As a list of parts, `{"type": "image"}` and `{"type": "text", "text": …}`.
    Parts,
    /// As one string, which is what templates of text-only models expect; the placeholder and a
    /// line break stand for a picture.
    Text,
}

#[derive(Debug)]
pub(super) struct Template {
    environment: Environment<'static>,
    source: String,
    content: Content,
}

impl Template {
    pub fn new(source: &str) -> Result<Self, PromptError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", tojson);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|e| PromptError::Template {
                reason: e.to_string(),
            })?;
        let mut this = Self {
            environment,
            source: source.to_owned(),
            content: Content::Parts,
        };
        if !this.shows_text() {
            this.content = Content::Text;
            if !this.shows_text() {
                // Neither does: let requests tell what the template asks for.
                this.content = Content::Parts;
            }
        }
        Ok(this)
    }

    /// The template of a folder: `chat_template.jinja`, else `chat_template.json`, else
    /// `chat_template` of `tokenizer_config.json`.
    pub fn from_folder(folder: &Path) -> Result<Option<Self>, PromptError> {
        if let Some(bytes) = read(&folder.join("chat_template.jinja"))? {
            let source = String::from_utf8(bytes).map_err(|_| PromptError::Template {
                reason: "the file is not UTF-8".into(),
            })?;
            return Self::new(&source).map(Some);
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let path = folder.join(name);
            let Some(bytes) = read(&path)? else { continue };
            let config: serde_json::Value =
                serde_json::from_slice(&bytes).map_err(|source| PromptError::Json {
                    path: path.display().to_string(),
                    source,
                })?;
            if let Some(source) = default_source(&config["chat_template"]) {
                return Self::new(source).map(Some);
            }
        }
        Ok(None)
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt that the model continues.
    pub fn render(
        &self,
        messages: &[Message],
        special: &SpecialTokens,
    ) -> Result<String, PromptError> {
        let image = special.image.as_ref().map_or("", |(_, text)| text.as_str());
        let messages: Vec<Value> = messages.iter().map(|m| self.message(m, image)).collect();
        self.render_values(&messages, special)
            .map_err(|e| PromptError::Render { reason: reason(&e) })
    }

    fn render_values(&self, messages: &[Value], special: &SpecialTokens) -> Result<String, Error> {
        let call = context! { messages, add_generation_prompt => true };
        let context = context! { ..call, ..Value::from_serialize(&special.named) };
        self.environment.get_template(NAME)?.render(context)
    }

    fn message(&self, message: &Message, image: &str) -> Value {
        let content = match self.content {
            Content::Parts => message.content.iter().map(part).collect(),
            Content::Text => {
                let texts = message.content.iter().map(|part| match part {
                    ContentPart::Text(text) => text.clone(),
                    ContentPart::Image => format!("{image}\n"),
                });
                Value::from(texts.collect::<String>())
            }
        };
        context! { role => message.role.name(), content }
    }

    /// Whether a user's text comes out as itself, not as the print of a list.
    fn shows_text(&self) -> bool {
        let message = Message::user(vec![ContentPart::Text(PROBE.into())]);
        let rendered = self.render(&[message], &SpecialTokens::default());
        rendered.is_ok_and(|text| text.contains(PROBE) && !text.contains("\"type\""))
    }
}

fn part(part: &ContentPart) -> Value {
    match part {
        ContentPart::Text(text) => context! { type => "text", text },
        ContentPart::Image => context! { type => "image" },
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, PromptError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PromptError::Read {
            path: path.display().to_string(),
            source,
        }),
    }
}

/// One template, or the one called `default` of several.
fn default_source(value: &serde_json::Value) -> Option<&str> {
    let named = |wanted: &str| {
        let mut all = value.as_array()?.iter();
        all.find(|entry| entry["name"] == wanted)?["template"].as_str()
    };
    value
        .as_str()
        .or_else(|| named("default"))
        .or_else(|| value.get("default")?.as_str())
}

/// The first line of what went wrong: for `raise_exception`, the template's own words.
fn reason(error: &Error) -> String {
    error
        .detail()
        .map_or_else(|| error.kind().to_string(), str::to_owned)
}

/// transformers' `{% generation %}` block marks an assistant's words for training and prints them
/// unchanged. A condition that always holds does the same, whitespace control included.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let tag = &rest[start + 2..start + length];
        let word = tag
            .trim_start_matches(['-', '+'])
            .trim_end_matches(['-', '+'])
            .trim();
        out.push_str(&rest[..start + 2]);
        match word {
            "generation" => out.push_str(&tag.replacen(word, " if true ", 1)),
            "endgeneration" => out.push_str(&tag.replacen(word, " endif ", 1)),
            _ => out.push_str(tag),
        }
        rest = &rest[start + length..];
    }
    out.push_str(rest);
    out
}

/// Python's `json.dumps(value, ensure_ascii=False)`, which transformers puts in the place of
/// Jinja's own filter; `indent` as there.
#[expect(
    clippy::needless_pass_by_value,
    reason = "minijinja gives keyword arguments by value"
)]
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let failed = |e: serde_json::Error| {
        Error::new(ErrorKind::BadSerialization, "a value is not JSON").with_source(e)
    };
    let indent: Option<Value> = options.get("indent")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    match indent.filter(|indent| indent.kind() == ValueKind::Number) {
        Some(indent) => {
            let spaces = " ".repeat(usize::try_from(indent)?.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value
                .serialize(&mut Serializer::with_formatter(&mut out, pretty))
                .map_err(failed)?;
        }
        None => {
            value
                .serialize(&mut Serializer::with_formatter(&mut out, Spaced))
                .map_err(failed)?;
        }
    }
    String::from_utf8(out)
        .map_err(|_| Error::new(ErrorKind::BadSerialization, "a value is not UTF-8"))
}

/// Python's separators: a blank after each comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W>(&mut self, writer: &mut W, first: bool) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        if first {
            Ok(())
        } else {
            writer.write_all(b", ")
        }
    }

    fn begin_object_key<W>(&mut self, writer: &mut W, first: bool) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        self.begin_array_value(writer, first)
    }

    fn begin_object_value<W>(&mut self, writer: &mut W) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::Folder;
    use super::*;

    fn user(text: &str) -> Message {
        Message::user(vec![ContentPart::Image, ContentPart::Text(text.into())])
    }

    fn special() -> SpecialTokens {
        let named = [("bos_token", "<s>"), ("eos_token", "</s>")];
        SpecialTokens {
            named: named
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            image: Some((3, "<image>".into())),
            ..SpecialTokens::default()
        }
    }

    fn rendered(source: &str, messages: &[Message]) -> Result<String, PromptError> {
        Template::new(source)?.render(messages, &special())
    }

    #[test]
    fn generation_blocks_print_their_content() {
        let source = "a\n  {%- generation -%}\n b {% endgeneration %}\nc{% if x %}{%endif%}";
        assert_eq!(
            without_generation_tags(source),
            "a\n  {%- if true -%}\n b {%  endif  %}\nc{% if x %}{%endif%}"
                .replace("{%- if true -%}", "{%-  if true  -%}")
        );
        assert_eq!(rendered(source, &[]).unwrap(), "ab c");
        assert_eq!(
            without_generation_tags("cut {% generation"),
            "cut {% generation"
        );
    }

    #[test]
    fn python_methods_and_special_tokens_are_known() {
        let source = "{{ bos_token }}{% for m in messages %}{{ m.role.upper() }}: \
            {% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'].strip() }}\
            {% endif %}{% endfor %}{{ eos_token }}{% endfor %}\
            {% if add_generation_prompt %}GO{% endif %}{{ pad_token }}";
        assert_eq!(
            rendered(source, &[user(" hi ")]).unwrap(),
            "<s>USER: hi</s>GO"
        );
    }

    #[test]
    fn a_template_refuses_in_its_own_words() {
        let source = "{% if messages | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}\
            {{ messages[0].content[-1].text }}";
        let error = rendered(source, &[user("a"), user("b")]).unwrap_err();
        assert!(error.is_request());
        assert_eq!(
            error.to_string(),
            "the chat template refused the messages: one at a time"
        );
        assert!(matches!(
            Template::new("{% if %}"),
            Err(PromptError::Template { .. })
        ));
    }

    #[test]
    fn a_template_of_text_models_gets_text() {
        let source = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}";
        assert_eq!(rendered(source, &[user("hi")]).unwrap(), "[<image>\nhi]");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let source = "{{ {'a': [1, '<é>']} | tojson }}{{ [1, '<'] | tojson(indent=1) }}";
        assert_eq!(
            rendered(source, &[]).unwrap(),
            "{\"a\": [1, \"<é>\"]}[\n 1,\n \"<\"\n]"
        );
    }

    #[test]
    fn the_default_of_several_templates_is_taken() {
        let list = serde_json::json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
        assert_eq!(default_source(&list), Some("d"));
        assert_eq!(
            default_source(&serde_json::json!({"default": "d"})),
            Some("d")
        );
        assert_eq!(default_source(&serde_json::json!("s")), Some("s"));
        assert_eq!(default_source(&serde_json::Value::Null), None);
    }

    #[test]
    fn a_folder_is_searched_from_the_newest_form_to_the_oldest() {
        let file = |name, content: &str| (name, content.to_owned());
        let jinja = file("chat_template.jinja", "new");
        let json = file("chat_template.json", "{\"chat_template\": \"old\"}");
        let oldest = file("tokenizer_config.json", "{\"chat_template\": \"oldest\"}");
        let none = file("tokenizer_config.json", "{}");
        let found = |files: &[(&str, String)]| {
            let template = Template::from_folder(Folder::new(files).path()).unwrap();
            template.map(|template| template.source)
        };
        let all = [jinja, json, oldest];
        assert_eq!(found(&all).as_deref(), Some("new"));
        assert_eq!(found(&all[1..]).as_deref(), Some("old"));
        assert_eq!(found(&all[2..]).as_deref(), Some("oldest"));
        assert_eq!(found(&[none]), None);
    }
}
