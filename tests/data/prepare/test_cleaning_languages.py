# ruff: noqa: RUF001
"""Good text is kept as it is, in scripts with spaces and without."""

import pytest

from configs.data import PrepareConfig
from configs.errors import SettingsError
from data.prepare.cleaning.cleaner import make_cleaning_step
from data.prepare.cleaning.cleaning_step import Dropped
from data.prepare.cleaning.word_split import is_unspaced, num_unspaced, split_words

TEXTS = {
    "en": (
        "The tides are the rise and fall of sea levels caused by the Moon and the Sun. Most "
        "shores have two high waters and two low waters on each day, and the time between them "
        "is a little more than twelve hours. Fishermen knew this long before anyone could "
        "explain it. They planned their work with the water, and they taught their children to "
        "watch the Moon as well as the clouds."
    ),
    "zh": (
        "清晨的菜市场总是最热闹的地方。卖豆腐的老人把木板擦得干干净净，一边称重，"
        "一边跟熟客聊起家里的孩子。隔壁的摊位上堆满了刚摘下来的青菜，叶子上还挂着露水。"
        "有人为了两毛钱讨价还价，有人干脆多抓一把葱塞进篮子里。等太阳升高，人群慢慢散去，"
        "地上只剩下几片菜叶和被踩湿的报纸。明天天不亮，这里又会重新亮起灯来。"
    ),
    "ja": (
        "祖母の家には古い柱時計があった。針はいつも五分ほど遅れていたが、"
        "誰も直そうとはしなかった。夏休みになると、私たちは縁側に座って西瓜を食べながら、"
        "その音を聞いたものだ。時計が止まったのは、祖母が亡くなった年の冬である。"
        "今でも静かな夜には、あの低い音が耳の奥で鳴るような気がする。"
    ),
    "ko": (
        "도서관은 언덕 위에 있어서 비가 오는 날이면 올라가기가 쉽지 않았다. 그래도 나는 매주 "
        "토요일마다 우산을 쓰고 그 길을 걸었다. 창가 자리에 앉으면 강과 다리가 한눈에 보였고, "
        "책장을 넘기는 소리만 조용히 들렸다. 그곳에서 읽은 소설의 줄거리는 거의 잊었지만, 젖은 "
        "신발과 따뜻한 공기는 아직도 또렷하게 기억난다. 어쩌면 우리가 책에서 얻는 것은 내용이 "
        "아니라 그것을 읽던 시간인지도 모른다. 나는 요즘도 가끔 그 길을 걷는다. 이제는 "
        "엘리베이터가 생겨서 아무도 숨을 헐떡이지 않는다."
    ),
    "th": (
        "ตลาดน้ำแห่งนี้เปิดตั้งแต่เช้ามืด ชาวบ้านพายเรือนำผักผลไม้และขนมมาขายกันเต็มคลอง นักท่องเที่ยวชอบนั่งกินก๋วยเ"
        "ตี๋ยวริมน้ำแล้วถ่ายรูปเก็บไว้เป็นที่ระลึก พอสายแดดแรงขึ้นเรือก็เริ่มทยอยกลับบ้าน เหลือเพียงเสียงน้ำกระทบเสาไ"
        "ม้และกลิ่นกาแฟที่ยังลอยอยู่ในอากาศ"
    ),
    "ar": (
        "كانت المدينة القديمة تستيقظ قبل شروق الشمس بقليل. يفتح الخباز باب دكانه الصغير ويشعل "
        "النار في الفرن، فتنتشر رائحة الخبز في الأزقة الضيقة. يمر الأطفال في طريقهم إلى "
        "المدرسة ويأخذ كل واحد منهم رغيفا ساخنا. في المساء يجتمع الرجال حول أكواب الشاي "
        "ويتحدثون عن المطر والحصاد وأخبار البحر. هكذا كانت الأيام تمضي هادئة، وكان الناس "
        "يعرفون بعضهم بعضا بالأسماء والأصوات."
    ),
    "ru": (
        "Поезд пришёл на станцию с опозданием почти на час. На платформе никого не было, "
        "только дежурный с фонарём медленно шёл вдоль вагонов и стучал молотком по колёсам. "
        "Снег падал крупными хлопьями и сразу таял на тёплых рельсах. Мы вышли из вагона, "
        "подняли воротники и пошли по узкой тропинке к деревне, где в одном окне ещё горел "
        "свет. Бабушка ждала нас всю ночь и не хотела ложиться."
    ),
    "hi": (
        "गाँव के बाहर एक पुराना बरगद का पेड़ था जिसके नीचे हर शाम लोग इकट्ठा होते थे। बूढ़े किसान अपनी फसल "
        "की बातें करते थे और बच्चे उसकी लटकती जड़ों पर झूला झूलते थे। एक बार बहुत तेज आँधी आई और उसकी सबसे बड़ी "
        "शाखा टूट गई। सबको लगा कि अब पेड़ सूख जाएगा, लेकिन अगले साल वसंत में उस पर फिर से नई पत्तियाँ निकल "
        "आईं। आज भी वह पेड़ वहीं खड़ा है और राह चलते लोगों को छाया देता है।"
    ),
}
KEEPING = (
    *("unicode", "html", "control_characters", "boilerplate_lines", "length", "gopher_quality"),
    *("gopher_repetition", "c4", "mask_personal"),
)
UNSPACED = ("zh", "ja", "th")


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("code", TEXTS)
def test_good_text_of_any_script_passes_every_step_unchanged(code, name):
    assert make_cleaning_step(name, PrepareConfig())(TEXTS[code]) == TEXTS[code]


@pytest.mark.parametrize("code", TEXTS)
def test_the_language_of_a_text_is_kept_and_any_other_is_dropped(code):
    for other in TEXTS:
        kept = make_cleaning_step("language", PrepareConfig(languages=(other,)))(TEXTS[code])
        assert kept == (TEXTS[code] if code == other else Dropped(f"language {code}"))


def test_a_language_that_the_identifier_does_not_know_is_refused():
    with pytest.raises(SettingsError, match=r"data.languages=en xx must be of .* but xx is not"):
        make_cleaning_step("language", PrepareConfig(languages=("en", "xx")))


@pytest.mark.parametrize("code", TEXTS)
def test_words_are_letters_just_where_a_script_has_no_spaces(code):
    found = split_words(TEXTS[code])
    assert all(map(is_unspaced, found)) == (code in UNSPACED)
    assert num_unspaced(TEXTS[code]) == sum(map(is_unspaced, found))
    assert max(map(len, found)) > 4 or code in UNSPACED


def test_words_keep_their_marks_and_lose_all_else():
    literal = {
        "Don't stop: 3.5% of x²!": ["Don", "t", "stop", "3", "5", "of", "x²"],
        "去公园iPhone手机。": ["去", "公", "园", "iPhone", "手", "机"],
        "हिन्दी में लिखा।": ["हिन्दी", "में", "लिखा"],
        "ไม่มีที่": ["ไ", "ม่", "มี", "ที่"],
        "スーパー・がぎ": ["ス", "ー", "パ", "ー", "が", "ぎ"],
        "한국어 문장": ["한국어", "문장"],
        "مرحبًا بالعالم": ["مرحبًا", "بالعالم"],
        "𠀀𠀁 👍🏽 — … e\u0301t": ["𠀀", "𠀁", "e\u0301t"],
        "": [],
    }
    assert {text: split_words(text) for text in literal} == literal
