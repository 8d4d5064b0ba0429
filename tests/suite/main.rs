//! The project's one integration binary.

mod pixels;
mod prompt;
