//! The card of a base that was pre-trained on a real set. In: facts. Out: Markdown. It must not know
//! how the facts were found.

use anyhow::Result;

use crate::records::base::RecordRecipe;
use crate::records::eval::Marks;

/// What a card states.
pub struct Facts<'a> {
    /// How to cite the set, and its licence.
    pub citation: &'a str,
    /// Training records.
    pub records: usize,
    /// Digest of the training records and their images.
    pub digest: &'a str,
    /// How the base was trained.
    pub recipe: &'a RecordRecipe,
    /// Values of the base.
    pub n_values: usize,
    /// On the set's validation part.
    pub validation: &'a Marks,
    /// The same with blank pictures.
    pub blank: &'a Marks,
}

/// The card's text.
pub fn text(facts: &Facts) -> Result<String> {
    let Facts {
        citation,
        records,
        digest,
        recipe,
        n_values,
        validation,
        blank,
    } = facts;
    Ok(format!(
        "# A small medical visual question answering base

A LLaVA of {n_values} values with a byte-level tokenizer of its own, trained from nothing on the
training part of {citation}: {records} questions, data {digest}. It holds no image and no record of
the set. Keep the citation with the weights.

Exact match on the set's validation part, 95 % intervals: {validation}.
With blank pictures: {blank}.

It answers short English questions about pictures like those of the set, at {side} x {side} pixels,
and is often wrong. It exists to measure adapters on. Not a medical device, not for any diagnosis.

## Recipe

```json
{recipe}
```
",
        side = recipe.sizes.image,
        recipe = serde_json::to_string_pretty(recipe)?,
    ))
}
