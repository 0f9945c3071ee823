//! An error with its causes as one line, for whoever prints it: errors never carry their source in their own text.
//! Pure. Owns nothing. Must never say the same cause twice.

/// An error and what caused it, outermost first, each once: `run sandbox 3f2a: create netns: EPERM`.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some libraries print their source themselves.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    impl std::fmt::Display for Layer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.text)
        }
    }

    impl std::error::Error for Layer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            self.source.as_deref().map(|source| source as _)
        }
    }

    #[test]
    fn a_chain_names_each_cause_once() {
        let inner = Layer { text: "EPERM", source: None };
        let middle = Layer { text: "mount: EPERM", source: Some(Box::new(inner)) };
        let outer = Layer { text: "run sandbox 3f2a", source: Some(Box::new(middle)) };
        assert_eq!(chain(&outer), "run sandbox 3f2a: mount: EPERM");
    }
}
