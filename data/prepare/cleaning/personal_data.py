"""Step "mask_personal": masks e-mail addresses, phone numbers and IP addresses."""

import ipaddress
import re

EMAIL, PHONE, IP = "<EMAIL>", "<PHONE>", "<IP>"

# Letters and digits are those of ASCII: Chinese may stand right before and after an address.
_FLAGS = re.ASCII | re.IGNORECASE | re.VERBOSE
_EMAIL = re.compile(
    r"""(?<![\w.%+-]) [\w.%+-]{1,64} @ (?:[a-z0-9-]+\.)+
    (?!(?:png|jpe?g|gif|svg|webp|css|js)\b) [a-z]{2,24} (?!\.?\w|:\S)
    # neither icon@2x.png nor git@host.org:path""",
    _FLAGS,
)
_IPV4 = re.compile(
    r"""(?<![\w.-]) (?<!version[ ]) (?<!release[ ]) (?<!section[ ]) (?<!chapter[ ]) (?<!\bv[ ])
    \d{1,3} (?:\.\d{1,3}){3} (?![\w-]|\.\d)""",
    _FLAGS,
)
_IPV6 = re.compile(r"(?<![\w:.]) [23][0-9a-f]{3}: [0-9a-f:]{1,33} (?:[0-9a-f]|::) (?!\w)", _FLAGS)
_PHONE = re.compile(
    r"""(?P<label>  # any 7 to 15 digits after such a word
        (?: \b(?:tel|phone|mobile|fax|whatsapp|call|dial) (?:ephone|[ ]number|[ ]no|[ ]us)?
            | 电话 | 手机 | 联系方式 | 传真 | 電話 | 携帯 | тел | Тел | телефон | Телефон )
        (?:[ ]is|[ ]at|[ ]on)? [ .:\uff1a]{0,3} )
        \+? \(? \d (?:[ .()\u00a0-]{0,2}\d){6,14} (?![\w-]|[.,]\d)
    | # +49 151 1234567, +1 (555) 123-4567: ITU-T E.164 allows 15 digits
        (?<![\w+]) \+[1-9] (?:[ .()\u00a0-]{0,2}\d){7,14} (?!\w)
    | # (555) 123-4567, 555-123-4567: North America; the area and the exchange begin with 2 to 9
        (?<![\w.-]) (?:1[ .-])? (?: \([2-9]\d\d\)[ ]?[2-9]\d\d[ .-] | [2-9]\d\d([.-])[2-9]\d\d\2 )
        \d{4} (?![\w-]|\.\d)
    | # 138 1234 5678: mobile numbers of China
        (?<![\w.+-]) 1[3-9]\d ([ -])\d{4}\3\d{4} (?![\w-]|\.\d)
    | # 020 7946 0958, 01 23 45 67 89, 0755-12345678, 03-1234-5678: a trunk prefix 0, then groups
        (?<![\w.,/+-]) (?<!\d[ ]) (?P<trunk> \(?0[1-9]\d{0,4}\)? (?:[ -]\d{2,8}){1,4} )
        (?![\w/-]|[ .,:]\d)""",
    _FLAGS,
)
_NUMBER = re.compile(r"\d[\d .()\u00a0-]{5,}\d", re.ASCII)  # in every phone number and IPv4
_DATE = re.compile(
    r"""(?<!\d) (?: (?:19|20)\d\d[-/. ]\d\d?[-/. ]\d\d? | \d\d?[-/. ]\d\d?[-/. ](?:19|20)\d\d )
    (?!\d)""",
    _FLAGS,
)
_DECIMAL = re.compile(r"\+\d+\.\d+")


def mask_personal(text: str) -> str:
    """Returns the text with e-mail addresses, phone numbers and IP addresses masked.

    They become <EMAIL>, <PHONE> and <IP>. Only public IP addresses are masked (by `ipaddress`; IPv6
    of 2000::/3), as no other identifies a person; four numbers below ten, or after a word such as
    "version", are a version. A phone number is masked by its form: international with "+", North
    American, with a trunk prefix 0 and groups, a Chinese mobile number in groups, or any digits
    after a word such as "phone". Dates, ISBNs, versions and integers without a form stay, so an
    eleven-digit number alone stays as well.

    Repeats until nothing is left to mask, as a mask may shorten what was too long to be an address.
    So masking is idempotent.
    """
    masked = _mask_once(text)
    while masked != text:
        text, masked = masked, _mask_once(masked)
    return masked


def _mask_once(text: str) -> str:
    return "\n".join(map(_mask_line, text.split("\n")))


def _mask_line(line: str) -> str:
    # No address spans lines, and a quick test rules out most lines.
    if "@" in line:
        line = _EMAIL.sub(EMAIL, line)
    if _NUMBER.search(line):
        line = _PHONE.sub(_mask_phone, _IPV4.sub(_mask_ip, line))
    if line.count(":") > 1:
        line = _IPV6.sub(_mask_ip, line)
    return line


def _mask_ip(match: re.Match[str]) -> str:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return match[0]
    is_version = address.version == 4 and all(byte < 10 for byte in address.packed)
    return IP if address.is_global and not is_version else match[0]


def _mask_phone(match: re.Match[str]) -> str:
    label = match["label"] or ""
    number = match[0].removeprefix(label)
    num_digits = sum(map(str.isdigit, number))
    if match["trunk"] and not 9 <= num_digits <= 12:
        return match[0]
    if _DATE.search(number) or _DECIMAL.fullmatch(number):
        return match[0]
    return label + PHONE
