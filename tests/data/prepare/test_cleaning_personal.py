# ruff: noqa: RUF001
"""What reaches a person is masked; what only looks like it stays."""

import pytest

from data.prepare.cleaning.personal_data import mask_personal

MASKED = {
    "Write to jane.doe+x@mail.example.co.uk.": "Write to <EMAIL>.",
    "联系我john_9@example.com，谢谢": "联系我<EMAIL>，谢谢",
    "mailto:A-B%c@sub-domain.example.museum?x": "mailto:<EMAIL>?x",
    "from 93.184.216.34, port 80": "from <IP>, port 80",
    "地址是93.184.216.34。": "地址是<IP>。",
    "[2606:4700:4700::1111]:53 and 2606:4700:4700:0:0:0:0:1111.": "[<IP>]:53 and <IP>.",
    "+49 151 12345678": "<PHONE>",
    "(+1 (555) 234-5678)": "(<PHONE>)",
    "+86 138 0013 8000、+8613800138000": "<PHONE>、<PHONE>",
    "(555) 234-5678 or 555-234-5678 or 555.234.5678": "<PHONE> or <PHONE> or <PHONE>",
    "1-800-555-0199": "<PHONE>",
    "call 138-0013-8000 or 138 0013 8000": "call <PHONE> or <PHONE>",
    "座机010-12345678，(0755) 12345678": "座机<PHONE>，<PHONE>",
    "电话：13800138000": "电话：<PHONE>",
    "London 020 7946 0958, Paris 01 23 45 67 89": "London <PHONE>, Paris <PHONE>",
    "東京 03-1234-5678": "東京 <PHONE>",
    "Call us at 5552345678 now": "Call us at <PHONE> now",
    "Tel. 030 123456; телефон: 8 495 123-45-67": "Tel. <PHONE>; телефон: <PHONE>",
}
LEFT = [
    *("icon@2x.png", "@property", "git@github.com:tessera/tessera.git", "user@host", "pkg@1.2.3"),
    *("a @ b", "5 apples @ 3.50", "192.168.0.1", "127.0.0.1", "10.0.0.255", "1.2.3.4"),
    *("version 12.34.56.78", "v12.34.56.78", "Section 12.34.56.78", "999.1.1.1", "12.34.56.78.90"),
    *("12:30:45", "00:1B:44:11:3A:B7", "std::vector", "fe80::1", "::1", "2001:db8::1", "a::b"),
    *("2023-01-15", "01-02-2023", "05-06-2023 12:30", "2023.10.05", "1990-1995", "2023/1/5 09:30"),
    *("2024-01-15 08:30:00 2024-01-16", "call 2023-01-15", "15.01.2023", "2023年10月05日"),
    *("ISBN 978-3-16-148410-0", "0-306-40615-2", "978-7-04-012345-6", "9783161484100"),
    *("13800138000", "1234567890123", "1 234 567 890", "2,000,000", "10 000 000 000"),
    *("4111 1111 1111 1111", "3.14159265358", "+37.7749295", "+100,000,000", "0.0123 456"),
    *(
        "01 02 03 04 05 06 07",
        "RFC 2119",
        "call me at 10",
        "phone 15 Pro 256 GB",
        "iPhone 12345678",
    ),
    *(
        "x+49123456789",
        "id 0x0123456789",
        "555-234-56789",
        "5552345678",
        "123-45-6789",
        "第12345678号",
    ),
]


@pytest.mark.parametrize("text", MASKED)
def test_addresses_are_masked(text):
    assert mask_personal(text) == MASKED[text]


@pytest.mark.parametrize("text", LEFT)
def test_what_only_looks_like_an_address_stays(text):
    assert mask_personal(text) == text
    assert mask_personal(f"See {text} there.\nAnd ({text}).") == f"See {text} there.\nAnd ({text})."


def test_all_addresses_of_a_text_are_masked_line_by_line():
    text = "a@b.org\n555-234-5678\n\nc@d.org 93.184.216.34\n+49 30 1234567\n555"
    assert mask_personal(text) == "<EMAIL>\n<PHONE>\n\n<EMAIL> <IP>\n<PHONE>\n555"
