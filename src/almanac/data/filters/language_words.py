"""Function words of the languages we tell apart, and the scripts that name a language alone.

Written by hand from grammars' closed classes (articles, pronouns, prepositions, conjunctions, auxiliaries), 40 or so a
language, lower case. A word may stand on several lists; it then speaks for each of them less. Spelling neighbours that
nobody asked for (Afrikaans beside Dutch, Catalan beside Spanish, Slovak beside Czech) are listed so that they are not
taken for the larger language.
"""

from __future__ import annotations

FUNCTION_WORDS: dict[str, tuple[str, ...]] = {
    code: tuple(words.split())
    for code, words in {
        "af": "die en van is nie in het met sy hy wat om te vir dat op aan hulle ons deur sal was of maar enige elke as "
        "hierdie tot ook word daar baie reg kan geen se by moet my jou",
        "ar": "في من على إلى عن أن إن لا ما هو هي هذا هذه ذلك التي الذي كل أو ولا كان قد مع بعد قبل بين حتى كما أي له لها "
        "وفي ومن غير لم لن عند حق شخص بما وأن",
        "bg": "и на за от се да в не с е са по че като или при всеки има това който която които до към само но му бъде "
        "още има право може както след без със във",
        "ca": "el la els les de del dels i a en un una que és per amb no es al als o com més seva seu seus tota tot aquest "
        "aquesta són ha han però sense entre ser dret sobre també nostre qualsevol",
        "cs": "a v se na je že s z do o k i ve pro za po by ale jako jeho jsou nebo který která které si od při má aby jen "
        "každý už však být není podle než také mezi tím ze u",
        "da": "og i at er det en til af på for med den de der ikke som har et fra eller ved skal om enhver hans han kan var "
        "deres sin sig denne uden blev være efter mod også men alle når nogen jeg",
        "de": "der die und in das den von zu mit sich auf ist des dem nicht ein eine als auch es an er werden aus hat dass "
        "nach wird bei einer um am sind noch wie einem über so zum oder haben nur durch kein seine jeder wir ich sie",
        "en": "the of and to in is that it for was as with be on by not he his but at are this have from or had an they "
        "which you were their has one would there been if who will more no when we any shall can do your its everyone",
        "es": "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ha me sin sobre "
        "este ya todo esta ser son entre cuando muy hay toda también fue persona derecho tiene",
        "fa": "و در به از که این را با است برای آن یک خود تا بر هر کس هم یا می شود های ها باید حق اند دارد نیز بود شده "
        "کند او ما هیچ اگر همه بدون نمی چه",
        "fi": "ja on ei että se hän oli ovat joka mutta tai kun niin kuin myös sen hänen jos mitä tämä olla ole sekä eikä "
        "jokaisella sitä ne voi kaikki joka oikeus ilman mukaan nyt vain minä tämän jotka hän ollut",
        "fr": "de la le et les des en un du une que est pour qui dans par au sur pas plus ne se sont avec il ce ou sa son "
        "aux ses à cette elle ont mais comme être nous vous leur tout toute sans droit je été d l",
        "hi": "के का की है में और को से हैं पर यह ने कि एक भी नहीं या अपने किसी लिए तो ही हो वह इस जो उस था थे कर जा प्रत्येक "
        "व्यक्ति अधिकार उसके तथा द्वारा सभी",
        "hu": "a az és hogy nem is egy ez van volt meg de csak mint ha vagy el már még minden ki be joga van sem szerint "
        "kell lehet aki amely ezt azt való fel más nélkül személy által mindenkinek",
        "id": "dan yang di dengan untuk tidak dari ini pada dalam adalah itu ke oleh akan atau setiap orang sebagai karena "
        "juga hak ada telah bahwa dapat mereka harus tanpa kepada saya berhak semua atas sudah secara",
        "it": "di e il la che in un a per è una del con non i da le dei si al ha sono della alla come più o gli anche nel "
        "lo delle ed ogni suo sua essere nella questo ad dal diritto individuo se ma dalla",
        "nl": "de van het een en in is dat op te met zijn voor niet die aan er om als ook door bij uit naar maar heeft hij "
        "dan of worden wordt nog over tot zal deze haar ik je geen ieder recht zij hun",
        "no": "og i det er på en til av for at med som de den ikke har et fra eller ved skal om enhver hans han kan var "
        "seg sin sitt denne uten ble være etter mot også men alle når noen jeg blir rett",
        "pl": "i w na z do się nie to że jest o od po za przez jak ale jego lub są dla przy oraz każdy tego który która "
        "które jako ma być ze czy może tym prawo bez tak ich człowiek",
        "pt": "de a que o e do da em um para com não uma os no se na por mais as dos como mas ao ele das à seu sua ou "
        "quando muito nos já eu também pelo pela até isso ser toda todo pessoa direito tem são",
        "ro": "și de a în la cu nu pe este un o că din să se care pentru al ale ori sau orice ce prin mai sa au are fi fost "
        "dreptul sunt dar după fără această acest lui lor persoană ca i",
        "ru": "и в не на я что он с как а то это по к но из у за от же для его или так все быть о бы при каждый человек "
        "право если только имеет без уже их может который она они мы",
        "sk": "a v sa na je že s z do o k i vo pre za po by ale ako jeho sú alebo ktorý ktorá ktoré si od pri má aby len "
        "každý už však byť nie podľa než tiež medzi tým zo u právo",
        "sv": "och i att det som en på är av för med den till inte om ett har de var från eller vid skall ska sin han kan "
        "så men hans sig utan också när alla efter jag nu genom rätt envar är mot vara",
        "tr": "ve bir bu de da için ile olarak olan her en çok gibi daha ne ya veya kadar sonra ancak hakkı vardır var hak "
        "değil ise kendi şahıs olduğu göre bütün o ki hiç ben mi herkes karşı",
        "uk": "і в на не що з та до у як за від це його або кожна людина має право на й при для є але бути про без так вона "
        "він ця які який може також своє всі їх по ніхто",
        "vi": "và của các có là được cho không trong người một với những quyền này để khi đã cũng từ hay hoặc về mọi đều "
        "như bị ra nào phải mình do tôi ở vào trên sự",
    }.items()
}

# Regular expression of a script's letters -> the one language of ours written in it (ISO 639-1).
SCRIPTS: dict[str, str] = {
    "[\u0370-\u03ff\u1f00-\u1fff]": "el",
    "[\u0530-\u058f]": "hy",
    "[\u0590-\u05ff]": "he",
    "[\u0980-\u09ff]": "bn",
    "[\u0a00-\u0a7f]": "pa",
    "[\u0a80-\u0aff]": "gu",
    "[\u0b80-\u0bff]": "ta",
    "[\u0c00-\u0c7f]": "te",
    "[\u0c80-\u0cff]": "kn",
    "[\u0d00-\u0d7f]": "ml",
    "[\u0d80-\u0dff]": "si",
    "[\u0e00-\u0e7f]": "th",
    "[\u0e80-\u0eff]": "lo",
    "[\u1000-\u109f]": "my",
    "[\u10a0-\u10ff\u1c90-\u1cbf]": "ka",
    "[\u1780-\u17ff]": "km",
    "[\uac00-\ud7af\u1100-\u11ff]": "ko",
}
