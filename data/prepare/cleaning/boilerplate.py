"""Step "boilerplate_lines": drops lines that a site puts on every page."""

import re
import unicodedata

from data.prepare.cleaning.word_split import num_unspaced, split_words

POLICY_PHRASES = (
    *("terms of use", "privacy policy", "cookie policy"),
    *("uses cookies", "use of cookies", "use cookies"),
)
"""Raffel et al. 2020, arXiv:1910.10683, section 2.2: phrases of notices about policies."""

MAX_NOTICE_WORDS = 40
"""A longer line is a text about cookies or JavaScript, not a notice of the site."""
MAX_ITEM_WORDS = 10
"""Penedo et al. 2023, RefinedWeb, arXiv:2306.01116, table 10: lines short enough for navigation."""
_MAX_CHARACTERS = 600  # a line of 40 words is shorter, unless most of it is symbols

_NOTICES = (
    *POLICY_PHRASES,
    *("accept cookies", "accept all cookies", "cookie settings", "cookie preferences"),
    *("使用cookie", "使用 cookie", "接受cookie", "接受 cookie", "cookie政策", "cookie设置"),
    *("cookieを使用", "cookieの使用", "cookieポリシー"),
    *("enable javascript", "turn on javascript", "requires javascript", "activate javascript"),
    *("javascript is disabled", "javascript is required", "javascript must be", "启用javascript"),
    *("javascript enabled", "javascriptを有効", "javascriptが無効", "启用 javascript"),
)
_ITEMS = frozenset(
    item.strip()
    for item in """
    home / home page / homepage / menu / main menu / toggle navigation / navigation / sitemap
    skip to content / skip to main content / skip to navigation / back to top / go to top / top
    next / previous / next page / previous page / next post / previous post / next article
    previous article / older posts / newer posts / see all / see more / view all / view more
    read more / load more / show more / continue reading / click here / read the full article
    首页 / 主页 / 返回首页 / 返回顶部 / 上一篇 / 下一篇 / 上一页 / 下一页
    查看更多 / 阅读全文 / 点击查看
    ホーム / メニュー / トップページ / ページトップへ / トップへ戻る / 次へ
    前へ / 続きを読む / もっと見る

    sign in / log in / login / log out / logout / sign up / register / log in or register
    sign in or register / create an account / my account / forgot password / forgot your password?
    cart / my cart / add to cart / add to basket / add to wishlist / subscribe / subscribe now
    subscribe to our newsletter / sign up for our newsletter
    登录 / 注册 / 登录 注册 / 登录/注册 / 忘记密码 / 购物车 / 加入购物车 / 立即购买 / 立即注册
    ログイン / 新規登録 / 会員登録 / カートに入れる / お問い合わせ

    share / share this / share this post / share this page / share this article / tweet / pin it
    share on facebook / share on twitter / share on linkedin / share on whatsapp / email this
    follow us / follow us on twitter / follow us on facebook / like us on facebook / print this page
    leave a comment / leave a reply / post a comment / add a comment / no comments / no comments yet
    分享 / 分享到 / 转发 / 点赞 / 收藏 / 收藏本站 / 发表评论 / 我要评论 / 暂无评论
    シェア / シェアする / ツイート / コメントを書く / コメントを残す

    advertisement / advertisements / sponsored / sponsored content / related posts
    related articles / recent posts / popular posts / you may also like
    you might also like / all rights reserved
    广告 / 相关阅读 / 相关文章 / 相关推荐 / 猜你喜欢 / 热门推荐 / 版权所有
    広告 / 関連記事 / おすすめ記事
    """.replace("\n", " / ").split(" / ")
    if item.strip()
)
_PATTERN = re.compile(
    r"\d[\d,.]*[km]? (?:likes?|shares?|comments?|views?|retweets?|followers?|replies)"
    r"|(?:阅读|浏览|评论|点赞|转发)(?:量|数|次数)?\s*[:(]?\s*\d+\)?"
    r"|\d+ items? in (?:your )?(?:cart|basket)"
    r"|(?:(?:copyright|©|\(c\)) ?)+\d{4}\b.*|.*\ball rights reserved"
    r"|.*版权所有.*\d{4}.*|.{1,4}icp[备证].*"
    r"|powered by \w[\w.]*( \w[\w.]*)?|click here to [^.?]*|[上下]一[篇页]:.*"
    r"|share (?:this )?(?:\w+ )?on \w+|分享到:?(?: ?(?:微信|微博|朋友圈|qq空间|qq|豆瓣))+"
    r"|(?:home|首页|主页|ホーム)(?: ?[|»>→/\u203a] ?[^|»>→/\u203a]+)+"
)


def drop_boilerplate_lines(text: str) -> str:
    """Returns the text without the lines that a site puts on every page.

    A line is dropped by one of two rules; no line is changed, and blank lines stay.

    - A notice: at most 40 words, with a phrase of C4's about policies (Raffel et al. 2020,
      arXiv:1910.10683, section 2.2), on accepting cookies, or that JavaScript must be on. C4 drops
      such lines at any length, and every line with the word Javascript; here texts on these stay.
    - An item of navigation, an account, sharing, comments, rights or an advertisement: at most 10
      words and nothing else ("Skip to content", "3 likes", "Home > News > Sport"), after
      Penedo et al. 2023, RefinedWeb, arXiv:2306.01116, table 10. Its rules on upper case and on
      lone words or numbers are not applied: they drop headings, verse and tables.

    The phrases are English, Chinese and Japanese; lines of other languages stay.
    """
    return "\n".join(line for line in text.split("\n") if not _is_boilerplate(line))


def _is_boilerplate(line: str) -> bool:
    if not line or len(line) > _MAX_CHARACTERS:
        return False
    # NFKC turns full-width punctuation and ellipses into ASCII.
    plain = unicodedata.normalize("NFKC", line).casefold().strip(" \t*•·-|:[]")
    if any(phrase in plain for phrase in _NOTICES):
        return _num_words(line) <= MAX_NOTICE_WORDS
    plain = plain.rstrip(".»>→ ")
    if plain in _ITEMS or _PATTERN.fullmatch(plain):
        return _num_words(line) <= MAX_ITEM_WORDS
    return False


def _num_words(line: str) -> float:
    """Returns the words of a line; two letters of a script without spaces count as one."""
    return len(split_words(line)) - num_unspaced(line) / 2
