//! Names of CDI devices: `vendor.com/class=device`.
//! Pure. Owns the grammar.
//! Must never accept a name that is a path: a kind may become part of a file's name elsewhere.

use std::fmt;

/// A fully qualified name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeviceName {
    /// `vendor.com/class`.
    pub(super) kind: String,
    pub(super) device: String,
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

impl DeviceName {
    /// An error is the whole reason, with the name in it.
    pub(super) fn parse(text: &str) -> Result<DeviceName, String> {
        let refuse = |why: &str| {
            let text: String = text.chars().take(200).collect();
            Err(format!("`{}` is no CDI device: {why}; want vendor.com/class=device", text.escape_debug()))
        };
        if text.len() > 1024 {
            return refuse("it is too long");
        }
        let Some((kind, device)) = text.split_once('=') else { return refuse("it has no `=`") };
        match check_kind(kind).and_then(|()| check_device(device)) {
            Ok(()) => Ok(DeviceName { kind: kind.to_owned(), device: device.to_owned() }),
            Err(why) => refuse(&why),
        }
    }
}

/// `vendor.com/class`: each part begins with a letter and ends with a letter or digit.
pub(super) fn check_kind(kind: &str) -> Result<(), String> {
    let Some((vendor, class)) = kind.split_once('/') else { return Err(format!("kind `{kind}` has no `/`")) };
    for (what, part) in [("vendor", vendor), ("class", class)] {
        let good = part.starts_with(|c: char| c.is_ascii_alphabetic())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
        if !good {
            return Err(format!("{what} `{}` is not letters, digits and `_-.`", part.escape_debug()));
        }
    }
    Ok(())
}

/// Letters and digits at both ends, `_-.:` between.
pub(super) fn check_device(device: &str) -> Result<(), String> {
    let good = device.starts_with(|c: char| c.is_ascii_alphanumeric())
        && device.ends_with(|c: char| c.is_ascii_alphanumeric())
        && device.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':'));
    if good { Ok(()) } else { Err(format!("device `{}` is not letters, digits and `_-.:`", device.escape_debug())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_vendor_class_and_device() {
        for good in ["vendor.com/gpu=0", "k8s.gpu.example.com/claim=1b2-gpu-0", "a/b=c", "v.com/net.x=a:b_c.d-e"] {
            assert_eq!(DeviceName::parse(good).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "gpu",
            "vendor.com/gpu",
            "vendor.com=0",
            "/gpu=0",
            "vendor.com/=0",
            "vendor.com/gpu=",
            "1v/gpu=0",
            "v/1=0",
            "v/../../etc=0",
            "v./c=0",
            "v/c=-0",
            "v/c=a b",
            "v/c=a/b",
            "v/c=\u{e9}",
            "v/c=a\n",
        ] {
            let why = DeviceName::parse(bad).unwrap_err();
            assert!(why.contains("want vendor.com/class=device"), "{bad}: {why}");
        }
        assert!(DeviceName::parse(&format!("v/c={}", "x".repeat(2000))).is_err());
    }
}
