//! Pickles that CPython 3 wrote of the same rows, one a protocol, and what must be refused.

use serde_json::json;

use super::*;

/// `pickle.dumps(rows, protocol)` for protocols 0 to 5.
const PICKLES: [&[u8]; 6] = [
    b"(lp0\n(dp1\nVimage\np2\nVtrain_0422\np3\nsVquestion\np4\nVWhere are liver stem cells (ov\
        al cells) located?\\u000a\\u005chere\np5\nsVanswer\np6\nVin the canals of hering \xe9\np\
        7\nsVn\np8\nI-3\nsVbig\np9\nI70000\nsVlong\np10\nL1099511627776L\nsVneg\np11\nL-10995116\
        27776L\nsVshare\np12\nF0.5\nsVyes\np13\nI01\nsVnone\np14\nNsVlabel\np15\n(dp16\nVa\np17\
        \nI1\nssVmany\np18\n(lp19\nI1\naI2\naI300\nasVpair\np20\n(Vx\np21\nVy\np22\ntp23\nsVfour\
        \np24\n(I1\nI2\nI3\nI4\ntp25\nsa(dp26\ng2\ng3\nsg4\nV\np27\nsg6\ng3\nsa.",
    b"]q\x00(}q\x01(X\x05\x00\x00\x00imageq\x02X\n\x00\x00\x00train_0422q\x03X\x08\x00\x00\x00\
        questionq\x04X6\x00\x00\x00Where are liver stem cells (oval cells) located?\n\\hereq\x05\
        X\x06\x00\x00\x00answerq\x06X\x1a\x00\x00\x00in the canals of hering \xc3\xa9q\x07X\x01\
        \x00\x00\x00nq\x08J\xfd\xff\xff\xffX\x03\x00\x00\x00bigq\x09Jp\x11\x01\x00X\x04\x00\x00\
        \x00longq\nL1099511627776L\nX\x03\x00\x00\x00negq\x0bL-1099511627776L\nX\x05\x00\x00\x00\
        shareq\x0cG?\xe0\x00\x00\x00\x00\x00\x00X\x03\x00\x00\x00yesq\x0dI01\nX\x04\x00\x00\x00n\
        oneq\x0eNX\x05\x00\x00\x00labelq\x0f}q\x10X\x01\x00\x00\x00aq\x11K\x01sX\x04\x00\x00\x00\
        manyq\x12]q\x13(K\x01K\x02M,\x01eX\x04\x00\x00\x00pairq\x14(X\x01\x00\x00\x00xq\x15X\x01\
        \x00\x00\x00yq\x16tq\x17X\x04\x00\x00\x00fourq\x18(K\x01K\x02K\x03K\x04tq\x19u}q\x1a(h\
        \x02h\x03h\x04X\x00\x00\x00\x00q\x1bh\x06h\x03ue.",
    b"\x80\x02]q\x00(}q\x01(X\x05\x00\x00\x00imageq\x02X\n\x00\x00\x00train_0422q\x03X\x08\x00\
        \x00\x00questionq\x04X6\x00\x00\x00Where are liver stem cells (oval cells) located?\n\\h\
        ereq\x05X\x06\x00\x00\x00answerq\x06X\x1a\x00\x00\x00in the canals of hering \xc3\xa9q\
        \x07X\x01\x00\x00\x00nq\x08J\xfd\xff\xff\xffX\x03\x00\x00\x00bigq\x09Jp\x11\x01\x00X\x04\
        \x00\x00\x00longq\n\x8a\x06\x00\x00\x00\x00\x00\x01X\x03\x00\x00\x00negq\x0b\x8a\x06\x00\
        \x00\x00\x00\x00\xffX\x05\x00\x00\x00shareq\x0cG?\xe0\x00\x00\x00\x00\x00\x00X\x03\x00\
        \x00\x00yesq\x0d\x88X\x04\x00\x00\x00noneq\x0eNX\x05\x00\x00\x00labelq\x0f}q\x10X\x01\
        \x00\x00\x00aq\x11K\x01sX\x04\x00\x00\x00manyq\x12]q\x13(K\x01K\x02M,\x01eX\x04\x00\x00\
        \x00pairq\x14X\x01\x00\x00\x00xq\x15X\x01\x00\x00\x00yq\x16\x86q\x17X\x04\x00\x00\x00fou\
        rq\x18(K\x01K\x02K\x03K\x04tq\x19u}q\x1a(h\x02h\x03h\x04X\x00\x00\x00\x00q\x1bh\x06h\x03\
        ue.",
    b"\x80\x03]q\x00(}q\x01(X\x05\x00\x00\x00imageq\x02X\n\x00\x00\x00train_0422q\x03X\x08\x00\
        \x00\x00questionq\x04X6\x00\x00\x00Where are liver stem cells (oval cells) located?\n\\h\
        ereq\x05X\x06\x00\x00\x00answerq\x06X\x1a\x00\x00\x00in the canals of hering \xc3\xa9q\
        \x07X\x01\x00\x00\x00nq\x08J\xfd\xff\xff\xffX\x03\x00\x00\x00bigq\x09Jp\x11\x01\x00X\x04\
        \x00\x00\x00longq\n\x8a\x06\x00\x00\x00\x00\x00\x01X\x03\x00\x00\x00negq\x0b\x8a\x06\x00\
        \x00\x00\x00\x00\xffX\x05\x00\x00\x00shareq\x0cG?\xe0\x00\x00\x00\x00\x00\x00X\x03\x00\
        \x00\x00yesq\x0d\x88X\x04\x00\x00\x00noneq\x0eNX\x05\x00\x00\x00labelq\x0f}q\x10X\x01\
        \x00\x00\x00aq\x11K\x01sX\x04\x00\x00\x00manyq\x12]q\x13(K\x01K\x02M,\x01eX\x04\x00\x00\
        \x00pairq\x14X\x01\x00\x00\x00xq\x15X\x01\x00\x00\x00yq\x16\x86q\x17X\x04\x00\x00\x00fou\
        rq\x18(K\x01K\x02K\x03K\x04tq\x19u}q\x1a(h\x02h\x03h\x04X\x00\x00\x00\x00q\x1bh\x06h\x03\
        ue.",
    b"\x80\x04\x950\x01\x00\x00\x00\x00\x00\x00]\x94(}\x94(\x8c\x05image\x94\x8c\ntrain_0422\
        \x94\x8c\x08question\x94\x8c6Where are liver stem cells (oval cells) located?\n\\here\
        \x94\x8c\x06answer\x94\x8c\x1ain the canals of hering \xc3\xa9\x94\x8c\x01n\x94J\xfd\xff\
        \xff\xff\x8c\x03big\x94Jp\x11\x01\x00\x8c\x04long\x94\x8a\x06\x00\x00\x00\x00\x00\x01\
        \x8c\x03neg\x94\x8a\x06\x00\x00\x00\x00\x00\xff\x8c\x05share\x94G?\xe0\x00\x00\x00\x00\
        \x00\x00\x8c\x03yes\x94\x88\x8c\x04none\x94N\x8c\x05label\x94}\x94\x8c\x01a\x94K\x01s\
        \x8c\x04many\x94]\x94(K\x01K\x02M,\x01e\x8c\x04pair\x94\x8c\x01x\x94\x8c\x01y\x94\x86\
        \x94\x8c\x04four\x94(K\x01K\x02K\x03K\x04t\x94u}\x94(h\x02h\x03h\x04\x8c\x00\x94h\x06h\
        \x03ue.",
    b"\x80\x05\x950\x01\x00\x00\x00\x00\x00\x00]\x94(}\x94(\x8c\x05image\x94\x8c\ntrain_0422\
        \x94\x8c\x08question\x94\x8c6Where are liver stem cells (oval cells) located?\n\\here\
        \x94\x8c\x06answer\x94\x8c\x1ain the canals of hering \xc3\xa9\x94\x8c\x01n\x94J\xfd\xff\
        \xff\xff\x8c\x03big\x94Jp\x11\x01\x00\x8c\x04long\x94\x8a\x06\x00\x00\x00\x00\x00\x01\
        \x8c\x03neg\x94\x8a\x06\x00\x00\x00\x00\x00\xff\x8c\x05share\x94G?\xe0\x00\x00\x00\x00\
        \x00\x00\x8c\x03yes\x94\x88\x8c\x04none\x94N\x8c\x05label\x94}\x94\x8c\x01a\x94K\x01s\
        \x8c\x04many\x94]\x94(K\x01K\x02M,\x01e\x8c\x04pair\x94\x8c\x01x\x94\x8c\x01y\x94\x86\
        \x94\x8c\x04four\x94(K\x01K\x02K\x03K\x04t\x94u}\x94(h\x02h\x03h\x04\x8c\x00\x94h\x06h\
        \x03ue.",
];

#[test]
fn every_protocol_gives_the_same_rows() {
    let wanted = json!([
        {
            "image": "train_0422",
            "question": "Where are liver stem cells (oval cells) located?\n\\here",
            "answer": "in the canals of hering \u{e9}",
            "n": -3, "big": 70_000, "long": 1_i64 << 40, "neg": -(1_i64 << 40), "share": 0.5,
            "yes": true, "none": null, "label": {"a": 1}, "many": [1, 2, 300], "pair": ["x", "y"],
            "four": [1, 2, 3, 4],
        },
        { "image": "train_0422", "question": "", "answer": "train_0422" },
    ]);
    for (protocol, pickle) in PICKLES.into_iter().enumerate() {
        assert_eq!(parse(pickle).as_ref(), Ok(&wanted), "protocol {protocol}");
    }
}

#[test]
fn texts_of_python_2_are_read() {
    // pickle.dumps([{'a': 'it\'s', 'b': u'caf\xe9'}], 0) and 2 of Python 2.7.
    let zero = b"(lp0\n(dp1\nS'a'\np2\nS\"it's\"\np3\nsS'b'\np4\nVcaf\xe9\np5\nsa.";
    let two = b"\x80\x02]q\x00}q\x01(U\x01aq\x02U\x04it'sq\x03U\x01bq\x04X\x05\x00\x00\x00caf\xc3\xa9q\x05ua.";
    assert_eq!(parse(two), Ok(json!([{"a": "it's", "b": "caf\u{e9}"}])));
    // Protocol 0 writes Latin-1, and escapes the bytes of texts that are no unicode.
    assert_eq!(parse(zero), Ok(json!([{"a": "it's", "b": "caf\u{e9}"}])));
    assert_eq!(quoted(r"'caf\xc3\xa9'").as_deref(), Some("caf\u{e9}"));
    assert_eq!(
        quoted(r"'tab\tand \x41 and \q and \''").as_deref(),
        Some("tab\tand A and \\q and '")
    );
}

#[test]
fn whatever_could_run_something_is_refused() {
    let refused = |pickle: &[u8]| match parse(pickle) {
        Err(PickleError::Instruction { code, .. }) => code,
        other => panic!("{other:?}"),
    };
    // pickle.dumps of an object whose __reduce__ is (os.system, ("echo",)), protocols 0 and 4.
    assert_eq!(
        refused(b"cposix\nsystem\np0\n(Vecho\np1\ntp2\nRp3\n."),
        b'c'
    );
    let four = b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04echo\x94\x85\x94R\x94.";
    assert_eq!(refused(four), 0x93);
    let known =
        b".\x80\x95(012N\x88\x89ILFSVJKM\x8a\x8bGTUX\x8c\x8dBC\x8e])}ltd\x85\x86\x87aesupqr\x94ghj";
    for code in (0..=255).filter(|code| !known.contains(code)) {
        assert_eq!(refused(&[code]), code);
    }
}

#[test]
fn damage_never_panics() {
    for pickle in PICKLES {
        for length in 0..pickle.len() {
            assert!(parse(&pickle[..length]).is_err());
        }
        for at in 0..pickle.len() {
            for change in [0x01, 0x04, 0x20, 0x80, 0xFF] {
                let mut changed = pickle.to_vec();
                changed[at] ^= change;
                let _ = parse(&changed);
            }
        }
    }
}

#[test]
fn sharing_cannot_unfold_without_end() {
    // Each list holds the one before it twice; then one that holds itself.
    let mut bomb = b"(lp0\n".to_vec();
    for level in 0..60 {
        bomb.extend(format!("(g{level}\ng{level}\nlp{}\n", level + 1).bytes());
    }
    bomb.push(b'.');
    assert_eq!(parse(&bomb), Err(PickleError::Unfolds));
    assert_eq!(parse(b"(lp0\ng0\na."), Err(PickleError::Unfolds));
    assert!(matches!(
        parse(b"(lp0\n(lp1\ng9\na."),
        Err(PickleError::Corrupt { .. })
    ));
}
