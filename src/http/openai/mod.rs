//! OpenAI's chat completions: what comes in and what goes out, as values.
//!
//! [`request`] with `messages`: a JSON body to a question, with every field either honoured, known to be harmless, or
//! refused by name. [`response`]: answers to JSON, whole or in pieces. Neither knows a socket.

mod messages;
pub mod request;
pub mod response;
