//! An image of the store, made into CRI's message of it.
//! Pure over an immutable record, in any task of the daemon. Owns nothing.
//! Must never resolve a user against the image's files: kubelet wants what the image says, not what it would come to.

use keelson_cri::v1;
use keelson_imageservice::Image;

pub(super) fn encode(image: &Image) -> v1::Image {
    let (uid, username) = user(&image.config.user);
    v1::Image {
        id: image.id.to_string(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size,
        uid: uid.map(|value| v1::Int64Value { value }),
        username,
        spec: None,
        pinned: image.pinned,
    }
}

/// The user of `user[:group]` as a number, or as a name. A number no kernel knows is given as a name, which kubelet
/// refuses where it must be sure that the user is not root.
fn user(text: &str) -> (Option<i64>, String) {
    let user = text.split_once(':').map_or(text, |(user, _)| user);
    let digits = !user.is_empty() && user.bytes().all(|byte| byte.is_ascii_digit());
    match user.parse::<u32>() {
        Ok(uid) if digits && uid <= i32::MAX.unsigned_abs() => (Some(i64::from(uid)), String::new()),
        _ => (None, user.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_number_or_a_name_and_its_group_is_left_out() {
        for (text, uid, name) in [
            ("", None, ""),
            ("1002", Some(1002), ""),
            ("1002:10", Some(1002), ""),
            ("www-data", None, "www-data"),
            ("www-data:1000", None, "www-data"),
            ("0", Some(0), ""),
            ("00", Some(0), ""),
            ("2147483647", Some(2_147_483_647), ""),
            ("2147483648", None, "2147483648"),
            ("4294967296", None, "4294967296"),
            ("99999999999999999999", None, "99999999999999999999"),
            ("-1", None, "-1"),
            ("+1", None, "+1"),
            ("0x0", None, "0x0"),
            ("0 ", None, "0 "),
        ] {
            assert_eq!(user(text), (uid, name.to_owned()), "{text}");
        }
    }
}
