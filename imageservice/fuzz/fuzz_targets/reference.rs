//! Any text: parsing never panics, and what is accepted has canonical and familiar forms that mean the same.
#![no_main]

use keelson_imageservice::Reference;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string().parse().as_ref(), Ok(&reference));
        assert_eq!(reference.familiar().parse().as_ref(), Ok(&reference));
        assert!(!reference.repository().split('/').any(|component| matches!(component, "" | "." | "..")));
    }
});
