"""Right answers, responses and what these are worth, for the tests of the math verifier."""

PAIRS: list[tuple[str, str, int]] = []


def right(answer: str, *given: str) -> None:
    """Answers in a box that are right."""
    PAIRS.extend((answer, f"\\boxed{{{text}}}", 1) for text in given)


def wrong(answer: str, *given: str) -> None:
    """Answers in a box that are wrong."""
    PAIRS.extend((answer, f"\\boxed{{{text}}}", 0) for text in given)


def response(answer: str, reward: int, *given: str) -> None:
    """Whole responses."""
    PAIRS.extend((answer, text, reward) for text in given)


right("3 - i", "3-i", "-i+3")
wrong("3 - i", "3 + i", "3", "-i", "3 - 2i", "i - 3")
right("2^{100}", "2^{100}", "4^{50}", "1267650600228229401496703205376")
wrong("2^{100}", "2^{99}", "2", "100", "2^{101}", "100^2", "2 \\cdot 100", "2^{10}")
wrong("4\\sqrt{2}", "4", "2", "4\\sqrt{3}", "\\sqrt{2}", "4+\\sqrt{2}", "5.65", "8\\sqrt2")
right("4\\sqrt{2}", "4\\sqrt2", "\\sqrt{32}", "4 \\cdot \\sqrt{2}", "4√2", "2^{5/2}", "4*sqrt(2)")
response("4\\sqrt{2}", 1, "The answer is $4\\sqrt{2}$.", "So we get $4\\sqrt{2}$", "= 4\\sqrt{2}")
wrong("512 and 729", "729", "512", "512 and 728", "512, 729, 1", "(512+729)")
right("512 and 729", "729 and 512", "512, 729", "\\{512,729\\}")
wrong(
    "61",
    "\\sin 61",
    "(60, 61)",
    "(61, 60)",
    "[61, 62]",
    "\\{60,61\\}",
    "61, 60",
    "\\sqrt{61}",
    "61!",
    "|61|+1",
    "-61",
    "61x",
    "61\\pi",
    "\\log 61",
    "61^{\\circ}+1",
    "6.1",
    "610",
    "16",
    "61^{-1}",
    "61 + 0.001",
    "61i",
    "60",
    "062",
    "61/1.0001",
    "\\pm 61",
    "61 \\pm 1",
    "61:1:2",
    "61:00",
    "\\frac{61}{1}+1",
    "\\binom{61}{2}",
    "61 \\equiv 0",
    "61 \\approx 62",
    "x>61",
    "x \\le 61",
    "61 < x",
    "61 \\text{ thousand}",
    "61 \\text{ or more}",
    "\\text{not } 61",
    "\\text{less than } 61",
    "61_{16}",
    "0x61",
    "61\\%\\cdot 2",
    "61 \\text{ squared}",
    "61 \\text{ mod } 100",
    "61+C",
    "f(61)",
    "P(61)",
    "a_{61}",
    "61 \\cdot 10^{1}",
    "61.0001",
    "61.00000001",
    "\\text{6 or 61}",
    "61 \\neq 60",
    "\\text{sixty-one or } 61",
)
right(
    "61",
    "61",
    "61.0",
    "061",
    "\\text{61}",
    "61.",
    "x = 61",
    "61\\text{ people}",
    "61 \\text{ cm}",
    "$61$",
    "\\$61",
    "61\\%",
    "61^\\circ",
    "61.00",
    "+61",
    "\\mathbf{61}",
    "{61}",
    "\\frac{122}{2}",
    "60+1",
    "61 \\text{ students}",
    "n = 61",
    "\\text{Answer: } 61",
    "61 \\text{ square units}",
    "61 \\text{ dollars}",
    "x=61",
    "\\frac{61}{1}",
    "\\left(61\\right)",
    "(61)",
    "6.1 \\times 10^1",
    "6.1e1",
    "\\angle A = 61^\\circ",
    "AB = 61",
    "f(3)=61",
    "\\text{Area} = 61 \\text{ cm}^2",
    "122/2 = 61",
)
wrong("72", "72 \\approx 73", "73 \\approx 72")
wrong("73", "72 \\approx 73", "73 \\approx 72")
wrong("7", "\\pm 7", "7 \\text{ or } -7", "-7", "7 \\pm 0.1")
wrong("\\pm 7", "7", "-7", "\\pm 8", "7, 7")
right("\\pm 7", "7 \\text{ or } -7", "x = \\pm 7", "\\{-7, 7\\}", "-7 \\text{ and } 7")
wrong("7:30", "7:31", "8:30", "30:7", "7:30 \\text{ p.m.}, 8")
right("7:30", "7:30", "7:30 \\text{ a.m.}", "7:30\\text{ PM}", "07:30")
wrong("7:30 \\text{ p.m.}", "7:30 \\text{ a.m.}", "7:31 \\text{ p.m.}")
right("7:30 \\text{ p.m.}", "7:30 \\text{ PM}", "7:30 pm", "7:30")
wrong("0.0000001", "0.0000002", "0.000001", "0", "1e-8")
right("0.0000001", "1e-7", "10^{-7}", "\\frac{1}{10000000}", "1 \\times 10^{-7}")
wrong("3 m", "3\\text{ km}", "3 \\text{ cm}", "3 \\text{ m}^2", "4 \\text{ m}", "3 \\text{ s}")
right("3 m", "3 \\text{ m}", "3", "3 \\text{ meters}", "300 \\text{ cm}", "3m")
wrong("3\\text{ m}", "3\\text{ km}", "3\\text{ mm}", "3\\text{ feet}")
right("3 \\text{ km}", "3000 \\text{ m}", "3", "3 \\text{ kilometers}")
right("60 \\text{ mph}", "60", "60 \\text{ miles per hour}")
wrong("60 \\text{ mph}", "60 \\text{ km/h}")
right("15 \\text{ cm}^2", "15", "15 \\text{ square centimeters}", "15\\text{ cm}^2", "15 \\mathrm{cm}^2")
wrong("15 \\text{ cm}^2", "15 \\text{ cm}", "15 \\text{ m}^2", "15\\text{ cm}^3")
wrong(
    "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}",
    "\\begin{pmatrix} 1 & 2 \\\\ 3 & -4 \\end{pmatrix}",
    "\\begin{pmatrix} 1 & 2 & 3 & 4 \\end{pmatrix}",
    "4",
    "\\begin{pmatrix} 3 & 4 \\\\ 1 & 2 \\end{pmatrix}",
)
right(
    "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}",
    "\\begin{bmatrix} 1 & 2 \\\\ 3 & 4 \\end{bmatrix}",
    "\\left(\\begin{array}{cc} 1 & 2 \\\\ 3 & 4 \\end{array}\\right)",
    "\\begin{pmatrix} 1 & \\frac{4}{2} \\\\ 3 & 4 \\end{pmatrix}",
    "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}",
)
right("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "(1,2)", "\\begin{bmatrix}1\\\\2\\end{bmatrix}")
wrong(
    "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}",
    "(2,1)",
    "\\begin{pmatrix} 1 & 2 \\end{pmatrix}",
    "\\begin{pmatrix} 2 \\\\ 1 \\end{pmatrix}",
)
right("50\\%", "50", "0.5", "\\frac{1}{2}", "50%", "50 \\text{ percent}", "50\\text{\\%}")
wrong("50\\%", "5", "0.05", "500", "50 \\text{ cm}", "5\\%")
right("0.5", "50\\%", "\\frac12", ".5", "0.50", "1/2", "5 \\times 10^{-1}")
wrong("0.5", "0.5\\%", "5\\%", "2", "0.05", "-0.5", "1.5", "0.51")
right("50", "50\\%", "50 \\text{ percent}")
wrong("50", "0.5", "\\frac12")
right("47_9", "47_{9}", "47", "(47)_9", "47_{\\text{nine}}")
wrong("47_9", "47_8", "43", "48_9", "47_{10}", "4_9")
right("101_2", "101", "101_{2}")
wrong("101_2", "101_3", "5", "110_2")
right("A5_{16}", "A5_{16}", "\\text{A5}_{16}")
wrong("A5_{16}", "A6_{16}", "5A_{16}")
right("x^2+2x+1", "(x+1)^2", "1+2x+x^2", "x^2 + 2 x + 1", "x^{2}+2x+1")
wrong("x^2+2x+1", "x^2-2x+1", "x^2+2x", "x^2+2x-1", "x+1", "(x-1)^2", "x^3+2x+1", "2", "1")
right("\\frac{x+1}{x-1}", "(x+1)/(x-1)", "\\frac{-x-1}{1-x}", "1+\\frac{2}{x-1}")
wrong("\\frac{x+1}{x-1}", "\\frac{x-1}{x+1}", "x+1/x-1", "\\frac{x+1}{x+1}")
right("|x|", "\\sqrt{x^2}", "|-x|")
wrong("|x|", "x", "-x", "x^2")
right("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt3}", "\\tan 30^\\circ", "\\sqrt{1/3}", "0.577350", "3^{-1/2}")
wrong("\\frac{\\sqrt{3}}{3}", "\\frac{3}{\\sqrt{3}}", "\\sqrt{3}", "0.577", "\\frac{\\sqrt3}{2}")
right("(3,\\frac{\\pi}{2})", "\\left(3, \\frac{\\pi}{2}\\right)", "(3, \\pi/2)")
wrong("(3,\\frac{\\pi}{2})", "(\\frac{\\pi}{2},3)", "(3,\\pi)", "3", "\\frac{\\pi}{2}", "(-3, \\frac{\\pi}{2})")
right(
    "\\{1,2\\}", "\\{2,1\\}", "1, 2", "1 \\text{ and } 2", "\\{1, 2, 2\\}", "\\lbrace 1,2 \\rbrace", "x \\in \\{1,2\\}"
)
wrong("\\{1,2\\}", "\\{1\\}", "(1,2)", "[1,2]", "\\{1,3\\}", "2")
right("1,2,3", "1, 2, 3", "3,2,1", "1, 2, and 3", "1,2 \\text{ and } 3", "x=1,2,3", "x = 1, x = 2, x = 3")
wrong("1,2,3", "1,2", "1,2,3,4", "1,2,4", "123", "6", "1;2")
right("[0,1)", "0 \\le x < 1", "x \\in [0,1)", "[0, 1)")
wrong("[0,1)", "(0,1]", "[0,1]", "(0,1)", "0 < x \\le 1", "[0,2)", "[1,0)")
right(
    "(-\\infty,2)\\cup(2,\\infty)",
    "x \\ne 2",
    "x \\neq 2",
    "(2,\\infty)\\cup(-\\infty,2)",
    "\\mathbb{R} \\setminus \\{2\\}",
    "x < 2 \\text{ or } x > 2",
)
wrong(
    "(-\\infty,2)\\cup(2,\\infty)",
    "x \\ne 3",
    "(-\\infty,2]\\cup(2,\\infty)",
    "(-\\infty,2)",
    "2",
    "(-\\infty,-2)\\cup(2,\\infty)",
)
right("x \\ge 5", "[5,\\infty)", "5 \\le x", "x \\geq 5", "x\\geqslant 5")
wrong("x \\ge 5", "x > 5", "x \\le 5", "5", "[5, 6)", "(5,\\infty)", "x \\ge -5", "y \\ge 5")
right("(2,\\infty)", "x > 2", "x>2", "2 < x")
wrong("(2,\\infty)", "[2,\\infty)", "(-\\infty,2)", "2", "(2,3)")
right("y = 2x + 3", "2x+3", "y=3+2x", "2x - y + 3 = 0", "f(x) = 2x+3", "y - 3 = 2x")
wrong("y = 2x + 3", "y = 2x - 3", "y = 3x+2", "2x+2", "y=-2x+3", "x = 2y+3")
right("x^2+y^2=4", "y^2 + x^2 = 4", "x^2 + y^2 - 4 = 0", "\\frac{x^2}{4}+\\frac{y^2}{4}=1", "2x^2+2y^2=8")
wrong("x^2+y^2=4", "x^2+y^2=2", "x^2-y^2=4", "x^2+y^2", "4", "x^2+y^2=16")
right("2:3", "2 : 3", "4:6", "2/3", "\\frac{2}{3}", "2 \\text{ to } 3")
wrong("2:3", "3:2", "2", "3", "2:4", "\\frac{3}{2}", "-2:3")
right("1:2:3", "2:4:6", "1 : 2 : 3")
wrong("1:2:3", "1:3:2", "1:2", "3:2:1")
right("\\text{Yes}", "yes", "Yes.", "\\textbf{Yes}")
wrong("\\text{Yes}", "No", "\\text{Yes or No}", "1")
right("\\text{Monday}", "monday", "Monday")
wrong("\\text{Monday}", "Tuesday", "\\text{Monday or Tuesday}")
right(
    "B",
    "(B)",
    "\\text{B}",
    "\\textbf{(B)}",
    "\\text{(B) } 42",
    "B. 42",
    "\\text{Option B}",
    "\\text{B}",
    "\\textbf{(B)}\\ 42",
)
wrong("B", "A", "(C)", "\\text{A or B}", "AB", "B, C", "\\text{(A) B}", "B+1", "(A),(B)", "\\text{not B}")
right("(C) 12", "C", "(C)", "(C) 12", "\\text{(C) }12")
wrong("(C) 12", "(D) 12", "D", "(C) 13")
right("\\emptyset", "\\varnothing", "\\{\\}", "\\text{no solution}", "No solutions")
wrong("\\emptyset", "0", "\\{0\\}", "1")
right("\\infty", "+\\infty", "infinity", "∞")
wrong("\\infty", "-\\infty", "0", "8")
right("\\text{DNE}", "\\text{does not exist}", "DNE", "undefined")
wrong("\\text{DNE}", "0", "\\infty")
right("1,234", "1234", "1{,}234", "1\\,234", "1 234", "1.234 \\times 10^3", "1,234.0")
wrong("1,234", "1.234", "1, 234", "12,34", "1,235", "234", "1")
right("1,234,567", "1234567", "1{,}234{,}567", "1\\,234\\,567", "1 234 567", "1.234567 \\times 10^6", "1.234567e6")
wrong("1,234,567", "1,234,568", "1,234,56", "1234")
right(
    "\\frac{3}{4}",
    "3/4",
    "0.75",
    "\\tfrac34",
    "\\frac34",
    "75\\%",
    "¾",
    "\\dfrac{3}{4}",
    "\\frac{6}{8}",
    "\\frac{-3}{-4}",
    "3 \\div 4",
)
wrong("\\frac{3}{4}", "\\frac{4}{3}", "3", "4", "-\\frac34", "0.7", "34", "\\frac{3}{5}", "75", "3:5")
right("2\\frac{1}{3}", "\\frac{7}{3}", "7/3", "2 \\frac{1}{3}", "2 1/3", "2⅓", "2+\\frac13")
wrong("2\\frac{1}{3}", "\\frac{2}{3}", "2.3", "\\frac{21}{3}", "3\\frac12", "2\\frac{1}{4}", "1\\frac{1}{3}")
right("-\\frac{2}{3}", "\\frac{-2}{3}", "-2/3", "\\frac{2}{-3}", "−2/3", "-\\frac23")
wrong("-\\frac{2}{3}", "\\frac23", "-\\frac32", "-2", "-0.67", "-0.66")
right("\\frac{1}{3}", "0.333333", "0.\\overline{3}", "0.\\bar{3}", "33\\frac{1}{3}\\%", "\\frac{1}{3} \\approx 0.333")
wrong("\\frac{1}{3}", "0.33", "0.3", "3", "0.333334", "33\\%", "\\frac{1}{3} \\approx 0.5")
right("\\pi", "3.141593", "\\pi", "pi", "π", "180^\\circ \\cdot \\frac{\\pi}{180^\\circ}")
wrong("\\pi", "3.14", "3", "22/7", "2\\pi", "180^\\circ", "180")
right("6.02 \\times 10^{23}", "6.02e23", "6.02 \\cdot 10^{23}", "602 \\times 10^{21}")
wrong("6.02 \\times 10^{23}", "6.02 \\times 10^{22}", "6.02", "6.03 \\times 10^{23}", "6.02 \\times 10^{-23}")
right("5!", "120", "5 \\cdot 4!")
wrong("5!", "5", "24", "6!", "-120")
right("\\binom{5}{2}", "10", "\\binom{5}{3}")
wrong("\\binom{5}{2}", "\\binom{2}{5}", "\\frac{5}{2}", "2.5", "\\binom{6}{2}")
right("e^{2}", "\\exp(2)", "e^2", "e \\cdot e")
wrong("e^{2}", "2e", "e", "2", "e^{-2}", "7.39", "e^3")
right("\\ln 2", "\\log_e 2", "\\ln(2)", "0.693147", "-\\ln\\frac12", "\\frac{1}{2}\\ln 4")
wrong("\\ln 2", "\\ln 3", "2", "-\\ln 2", "\\log_2 e")
right("\\sin x", "\\sin(x)", "\\cos(\\frac{\\pi}{2}-x)")
wrong("\\sin x", "\\cos x", "-\\sin x", "x", "\\sin 2x", "\\sin^2 x")
right("\\sin^2 x", "(\\sin x)^2", "1-\\cos^2 x", "\\sin^2(x)")
wrong("\\sin^2 x", "\\sin x^2", "\\cos^2 x", "2\\sin x")
right("8 \\pmod{11}", "8", "19 \\pmod{11}", "8 \\bmod 11", "x \\equiv 8 \\pmod{11}", "8 \\mod 11")
wrong("8 \\pmod{11}", "9 \\pmod{11}", "11", "8 \\pmod{12}", "3")
right("10^{-7}", "10^{-7}", "1e-7", "0.0000001")
wrong("10^{-7}", "10^{7}", "-10^7", "10^{-6}")
right("a=1, b=2", "a=1,b=2", "b=2, a=1", "(1,2)", "1, 2", "a=1 \\text{ and } b=2")
wrong("a=1, b=2", "a=2,b=1", "2, 1", "a=1", "(2,1)", "a=1,b=3")
right("(1,2),(3,4)", "(1,2) \\text{ and } (3,4)", "(3,4),(1,2)", "\\{(1,2),(3,4)\\}", "(x,y)=(1,2),(3,4)")
wrong("(1,2),(3,4)", "(1,2)", "(2,1),(3,4)", "1,2,3,4", "(1,2,3,4)")
right("(x,y)=(1,2)", "(1,2)", "x=1,y=2")
wrong("(x,y)=(1,2)", "(2,1)", "x=2,y=1", "1")
right("n^2", "n \\cdot n", "n^{2}")
wrong("n^2", "n", "2n", "n^3", "m^2", "-n^2")
right("\\frac{n!}{k!}", "n!/k!")
wrong("\\frac{n!}{k!}", "\\frac{k!}{n!}", "n!")
right("\\sqrt[3]{2}", "2^{1/3}", "2^{\\frac13}", "\\sqrt[3]{2}")
wrong("\\sqrt[3]{2}", "\\sqrt{2}", "3\\sqrt{2}", "2^3", "\\sqrt[4]{2}")
right("\\$5.00", "5", "$5", "5 \\text{ dollars}", "\\$5", "500 \\text{ cents}")
wrong("\\$5.00", "\\$50", "0.05", "\\$5.01", "5 \\text{ cents}")
right("1 \\text{ hour } 30 \\text{ minutes}", "90 \\text{ minutes}", "1.5 \\text{ hours}")
wrong("1 \\text{ hour } 30 \\text{ minutes}", "30", "1", "1 \\text{ hour}", "30 \\text{ minutes}")
right(
    "2 \\text{ hours and } 15 \\text{ minutes}",
    "2 \\text{ hours } 15 \\text{ minutes}",
    "135 \\text{ minutes}",
    "2 \\text{ hours and } 15 \\text{ minutes}",
)
wrong("2 \\text{ hours and } 15 \\text{ minutes}", "2", "2 \\text{ hours}", "2 \\text{ hours and } 16 \\text{ minutes}")
right("\\text{5 apples and 3 pears}", "\\text{5 apples and 3 pears}", "5 \\text{ apples}, 3 \\text{ pears}")
wrong("\\text{5 apples and 3 pears}", "5", "8", "\\text{3 apples and 5 pears}", "5 \\text{ apples}")
right("11\\text{th}", "11", "11^{\\text{th}}", "11^{th}")
wrong("11\\text{th}", "12\\text{th}", "1")
right("-1 + 2i", "2i-1", "-1+2i")
wrong("-1 + 2i", "1+2i", "-1-2i", "2-i", "1")
right("\\angle ABC", "\\angle ABC")
wrong("\\angle ABC", "\\angle ACB")
right("\\triangle ABC", "\\triangle ABC")
right("\\frac{\\pi}{4}", "\\pi/4", "0.785398", "\\arctan 1", "\\frac14\\pi")
wrong("\\frac{\\pi}{4}", "\\frac{4}{\\pi}", "45^\\circ", "45", "\\frac{\\pi}{2}", "\\pi")
right("45^\\circ", "45", "45^{\\circ}", "45°", "45 \\text{ degrees}")
wrong("45^\\circ", "\\frac{\\pi}{4}", "44^\\circ", "135^\\circ")
right("x=1 \\text{ or } x=-2", "x=1, x=-2", "x \\in \\{1,-2\\}", "\\{1,-2\\}", "1 \\text{ and } -2", "x = 1, -2")
wrong("x=1 \\text{ or } x=-2", "x=1 \\text{ or } x=2", "-2", "x=-1 \\text{ or } x=2")
right("A \\cup B", "A \\cup B", "A∪B")
wrong("A \\cup B", "A \\cap B", "A")
right("\\langle 1,2,3\\rangle", "(1,2,3)", "\\langle 1, 2, 3 \\rangle", "\\begin{pmatrix}1\\\\2\\\\3\\end{pmatrix}")
wrong("\\langle 1,2,3\\rangle", "(3,2,1)", "\\langle 1,2\\rangle")
right("12345.678", "12{,}345.678", "12345.6780")
wrong("12345.678", "12345.679", "12345.67", "12345")
right("x=3", "3", "x = 3", "3.0")
wrong("x=3", "x=-3", "y=3", "x=4", "x \\ne 3", "x>3")
right("-2 \\leq x \\leq 3", "[-2,3]", "x \\in [-2,3]", "-2 ≤ x ≤ 3", "3 \\ge x \\ge -2")
wrong("-2 \\leq x \\leq 3", "-2 < x < 3", "[-3,2]", "(-2,3)", "-2 \\le x \\le 4", "[2,3]")
right("2x > 6", "x > 3", "6 < 2x")
wrong("2x > 6", "x < 3", "x > 6", "x \\ge 3")
right("2\\pi r", "2 \\pi r", "2r\\pi", "\\pi \\cdot 2r")
wrong("2\\pi r", "\\pi r^2", "2\\pi", "2 r", "2\\pi R")
right("20\\text{ cm by }30\\text{ cm}", "20\\text{ cm by }30\\text{ cm}")
right("\\frac{a}{b+c}", "a/(b+c)")
wrong("\\frac{a}{b+c}", "a/b+c", "\\frac{a}{b}+c", "\\frac{b+c}{a}")
right("3^{n+1}-1", "3 \\cdot 3^n - 1", "-1+3^{n+1}")
wrong("3^{n+1}-1", "3^n+1-1", "3^{n-1}-1", "3^{n+1}+1")
right("(-1)^n", "(-1)^{n}", "(-1)^{n+2}")
wrong("(-1)^n", "-1^n", "1", "(-1)^{n+1}")
right("C", "C", "(C)")
right("0", "0", "0.0", "-0", "\\frac{0}{5}")
wrong("0", "\\emptyset", "1", "O", "0.0000001", "10^{-30}")
right("\\text{(0, 3)}", "(0,3)")
wrong("\\text{(0, 3)}", "(3,0)")
# extraction
response(
    "72",
    1,
    "#### 72",
    "...\n#### 72.",
    "#### $72",
    "#### 72 clips",
    "### Answer\n72",
    "The answer is **72**.",
    "**72**",
    "Answer: 72",
    "answer = 72",
    "So the final answer is: 72",
    "The final answer is $\\boxed{72}$. I hope it is correct.",
    "Thus, \\boxed{72} and so the answer is 72.",
    "<think>60</think>72",
    "<think>\\boxed{60}\n#### 60</think>\n#### 72",
    "therefore she has 72 clips in total.",
    "#### Final Answer\n72",
    "#### Answer: 72",
    "#### **72**",
    "### Final Answer: 72",
    "\\[ \\boxed{72} \\]",
    "\\boxed{72}\n\n#### 72",
    "\\fbox{72}",
    "48/2 = 24, 48+24 = 72",
    "It is 72.",
    "Result: 72\n",
    "\\boxed{\\boxed{72}}",
    "Final answer: 72 clips",
    "reasoning</think>The answer is 72",
    "\\boxed{71}, or rather \\boxed{72}",
    "#### 72\n\n#### 72",
    "The answer is 72 clips since 48 + 24 = 72.",
    "\\boxed{72.}",
    "#### 72\nDone",
    "\\boxed 72",
)
response(
    "72",
    0,
    "<think>72</think>",
    "<think>\\boxed{72}",
    "<think>#### 72</think> The answer is 73.",
    "<think>\\boxed{72}</think>\\boxed{73}",
    "#### 73",
    "#### 7 2",
    "\\boxed{72}\n#### 73",
    "#### 73\n\\boxed{72}",
    "\\boxed{72} The final answer is 73.",
    "72 or 73",
    "The answer is 72 or 73.",
    "The answer is 73. Not 72",
    "#### 72, 73",
    "#### 72 73",
    "\\boxed{73}\\boxed{72}",
    "\\boxed{73}, \\boxed{72}",
    "\\boxed{73} or \\boxed{72}",
    "\\boxed{72} and \\boxed{73}",
    "",
    "no idea",
    "The answer is 73",
    "\\boxed{72",
    "\\boxed{72} \\boxed{",
    "\\boxed{72} so \\boxed{}",
    "the answer lies between 72 and 73",
    "The answer is -72",
    "The answer is 72.5",
    "answer: 172",
    "#### 1/72",
    "#### 72/5",
    "#### -72",
    "The answer is 72%2",
    "#### 72 and 73",
    "The answer is either 72 or 73",
    "#### 73\n#### 72",
    "Answer: 72\nAnswer: 73",
    "<think>72",
)
response("Paris", 1, "The answer is Paris.", "\\boxed{Paris}", "\\boxed{\\text{Paris}}", "Paris", "#### Paris")
response("Paris", 0, "The answer is London.", "Paris or London", "#### London")
response(
    "B",
    1,
    "The answer is B.",
    "The correct answer is (B).",
    "The correct option is \\boxed{B}",
    "Answer: B",
    "#### B",
    "B",
)
response("B", 0, "The answer is A.", "The answer is A, not B.", "A", "Answer: (C)", "A or B")
response("x^2+1", 1, "$x^2+1$", "The answer is $x^2+1$.", "x^2+1", "So f(x) = $1+x^2$")
response("x^2+1", 0, "The answer is $x^2-1$.", "$x^2$")
response("12 and 30", 1, "The numbers are 12 and 30.", "They are 30 and 12")
response("12 and 30", 0, "The numbers are 12 and 31.", "30")
response("-5", 1, "answer: -5", "The temperature is -5.", "It is -5 degrees")
response("5", 0, "answer: -5", "The temperature is -5.")
response("1/2", 1, "The probability is 1/2.", "So the probability is $\\frac{1}{2}$.")
response("2", 0, "The probability is 1/2.", "so $\\frac{1}{2}$")
response(
    "18", 1, "She makes $18 every day.", "She makes \\$18.", "Janet makes 9 * 2 = $18 every day at the farmer’s market."
)
response("\\frac{1}{2}", 1, "1/2", "The answer is 0.5.")

response("5", 1, "\\boxed{5}\n\n\\boxed{5.0}", "<answer>5</answer> \\boxed{5}")
response("5", 0, "\\boxed{5}\n\n\\boxed{5.1}", "<answer>5</answer> \\boxed{6}", "<answer>6</answer> \\boxed{5}")
