"""Nearly 400 common English words, for images of words."""

WORDS = """
about above across after again almost along already also always among animal answer apple around arrive autumn away baby
back balance ball bank basket bath beach bear beautiful because become bedroom before begin behind believe below beside
best better between bicycle bird black blanket blood blue board boat body book border borrow both bottle bottom branch
brave bread breakfast bridge bright bring broken brother brown brush build busy butter button camera candle capital
careful carry castle catch cellar centre chair chance change cheap cheese chicken children choose church circle city
class clean clear climb clock close cloud coast coffee cold colour common cook copper corner cotton count country cousin
cover cream cross crowd cup daily dance danger dark daughter deep desert desk dinner dirty doctor dollar door double
dream dress drink drive during early earth east easy eight electric empty engine enough evening every example explain
eyes face fact fair family famous farm fast father feather fence field fight finger finish fire first fish flag floor
flower follow food foot forest forget fork four fresh friend front fruit full game garden gate gentle give glass gold
good grass great green ground grow guess guest hair half hammer hand happy harbour hard harvest heart heavy help here
high hill history hold holiday home honest hope horse hospital hotel hour house hungry hurry inside iron island jacket
journey juice jump keep kettle kitchen knife knock ladder lamp language large last laugh lazy leaf learn leather leave
left lemon letter library light line lion listen little long lucky lunch machine make many market match meadow measure
meat medicine meet member middle milk minute mirror money month moon morning mother mountain mouse mouth music narrow
near needle never night noise north number ocean office often orange other over oxygen page paint paper parent park
peace pencil people pepper picture place plant plate pocket poor potato power prize proud pull quick quiet rabbit radio
rain read ready river road roof room round salt sand school season seven shade sharp sheep ship shirt shoe short sister
sleep slow small smile snow soft song south space spring square station stone storm story street strong sugar summer
table teacher thick thing three ticket together tomorrow tower train travel tree under valley village visit voice wait
walk warm water weather west wheel white wind window winter wonder wood world write yellow young
"""
