"""English words that songs use, in katakana as Japanese singers sing them (written for this project)."""

from __future__ import annotations

_TEXT = """
yeah イェー|oh オー|ooh ウー|woo ウー|whoa ウォウ|wow ワオ|ah アー|uh ア|hey ヘイ|hi ハイ|ho ホー|la ラ|na ナ|da ダ|
doo ドゥー|hmm ンー|mm ンー|i アイ|i'm アイム|i'll アイル|i've アイヴ|i'd アイド|me ミー|my マイ|mine マイン|
you ユー|you're ユーアー|you'll ユール|your ユア|yours ユアーズ|he ヒー|she シー|we ウィー|we're ウィーアー|
we'll ウィール|they ゼイ|they're ゼイアー|them ゼム|us アス|our アワー|it イット|it's イッツ|its イッツ|this ディス|
that ザット|that's ザッツ|these ディーズ|those ゾーズ|there ゼア|where ウェア|when ウェン|what ホワット|
what's ホワッツ|who フー|why ホワイ|how ハウ|a ア|an アン|the ザ|and アンド|or オア|but バット|if イフ|of オブ|
to トゥー|too トゥー|in イン|on オン|at アット|for フォー|with ウィズ|from フロム|by バイ|am アム|is イズ|are アー|
was ワズ|were ワー|be ビー|been ビーン|do ドゥー|does ダズ|did ディド|done ダン|have ハヴ|has ハズ|had ハド|
will ウィル|would ウッド|could クッド|should シュッド|can キャン|can't キャント|don't ドント|won't ウォウント|
didn't ディドゥント|isn't イズント|ain't エイント|let's レッツ|let レット|gonna ゴナ|wanna ワナ|gotta ガッタ|
cause コーズ|'cause コーズ|so ソー|no ノー|yes イエス|not ノット|now ナウ|ok オーケー|okay オーケー|up アップ|
down ダウン|out アウト|over オーバー|under アンダー|again アゲイン|away アウェイ|back バック|here ヒア|all オール|
every エブリ|everything エブリシング|everybody エブリバディ|everyone エブリワン|everyday エブリデイ|
nothing ナッシング|something サムシング|somebody サムバディ|someone サムワン|nobody ノーバディ|anything エニシング|
anyone エニワン|never ネバー|ever エバー|always オールウェイズ|forever フォーエバー|together トゥギャザー|
tonight トゥナイト|today トゥデイ|tomorrow トゥモロー|yesterday イエスタデイ|morning モーニング|evening イブニング|
midnight ミッドナイト|night ナイト|nights ナイツ|day デイ|days デイズ|sun サン|sunshine サンシャイン|
sunset サンセット|sunrise サンライズ|sunny サニー|sunday サンデー|monday マンデー|friday フライデー|
saturday サタデー|moon ムーン|moonlight ムーンライト|star スター|stars スターズ|starlight スターライト|sky スカイ|
skies スカイズ|sea シー|ocean オーシャン|wave ウェーブ|waves ウェーブス|rain レイン|rainy レイニー|
rainbow レインボー|snow スノー|wind ウィンド|fire ファイヤー|ice アイス|water ウォーター|river リバー|
mountain マウンテン|island アイランド|beach ビーチ|earth アース|air エア|cloud クラウド|storm ストーム|
thunder サンダー|heart ハート|hearts ハーツ|soul ソウル|mind マインド|body ボディ|hand ハンド|hands ハンズ|eye アイ|
eyes アイズ|face フェイス|smile スマイル|tear ティア|tears ティアーズ|lips リップス|blood ブラッド|cry クライ|
crying クライング|laugh ラフ|dance ダンス|dancing ダンシング|dancer ダンサー|sing シング|singing シンギング|
song ソング|songs ソングス|music ミュージック|melody メロディー|rhythm リズム|beat ビート|beats ビーツ|bass ベース|
guitar ギター|piano ピアノ|drum ドラム|drums ドラムス|band バンド|stage ステージ|show ショー|live ライブ|
tempo テンポ|dream ドリーム|dreams ドリームス|dreamin' ドリーミン|dreaming ドリーミング|dreamer ドリーマー|
hope ホープ|wish ウィッシュ|light ライト|lights ライツ|shine シャイン|shining シャイニング|bright ブライト|
dark ダーク|darkness ダークネス|shadow シャドウ|blue ブルー|red レッド|white ホワイト|black ブラック|green グリーン|
yellow イエロー|pink ピンク|gold ゴールド|golden ゴールデン|silver シルバー|color カラー|colors カラーズ|
flower フラワー|flowers フラワーズ|rose ローズ|cherry チェリー|blossom ブロッサム|bloom ブルーム|tree ツリー|
spring スプリング|summer サマー|autumn オータム|winter ウィンター|season シーズン|seasons シーズンズ|time タイム|
times タイムズ|moment モーメント|memory メモリー|memories メモリーズ|story ストーリー|stories ストーリーズ|
world ワールド|life ライフ|alive アライブ|die ダイ|dead デッド|death デス|born ボーン|begin ビギン|
beginning ビギニング|end エンド|ending エンディング|start スタート|stop ストップ|go ゴー|goes ゴーズ|goin' ゴーイン|
going ゴーイング|gone ゴーン|come カム|came ケイム|coming カミング|stay ステイ|leave リーブ|left レフト|
right ライト|wrong ロング|true トゥルー|truth トゥルース|lie ライ|lies ライズ|real リアル|reality リアリティ|
fake フェイク|good グッド|bad バッド|better ベター|best ベスト|happy ハッピー|happiness ハピネス|
birthday バースデー|merry メリー|christmas クリスマス|holy ホーリー|sad サッド|lonely ロンリー|alone アローン|
hello ハロー|goodbye グッバイ|bye バイ|please プリーズ|sorry ソーリー|thank サンク|thanks サンクス|
welcome ウェルカム|just ジャスト|only オンリー|more モア|most モースト|much マッチ|many メニー|very ベリー|
still スティル|yet イェット|maybe メイビー|one ワン|two トゥー|three スリー|four フォー|five ファイブ|six シックス|
seven セブン|eight エイト|nine ナイン|ten テン|first ファースト|last ラスト|once ワンス|twice トゥワイス|zero ゼロ|
million ミリオン|hundred ハンドレッド|thousand サウザンド|ready レディ|steady ステディ|get ゲット|set セット|
run ラン|running ランニング|runaway ランナウェイ|fly フライ|flying フライング|high ハイ|higher ハイヤー|low ロー|
way ウェイ|ways ウェイズ|road ロード|street ストリート|highway ハイウェイ|city シティ|town タウン|home ホーム|
house ハウス|room ルーム|door ドア|window ウィンドウ|key キー|lock ロック|open オープン|close クローズ|
station ステーション|train トレイン|car カー|bus バス|drive ドライブ|driver ドライバー|feel フィール|
feelin' フィーリン|feeling フィーリング|feelings フィーリングス|touch タッチ|kiss キス|hold ホールド|hug ハグ|
break ブレイク|broken ブロークン|fall フォール|falling フォーリング|fallen フォールン|rise ライズ|rising ライジング|
raise レイズ|make メイク|take テイク|give ギブ|gift ギフト|believe ビリーブ|believer ビリーバー|trust トラスト|
promise プロミス|remember リメンバー|forget フォーゲット|forgive フォーギブ|find ファインド|found ファウンド|
lose ルーズ|lost ロスト|win ウィン|winner ウィナー|hero ヒーロー|heroes ヒーローズ|angel エンジェル|
angels エンジェルス|devil デビル|god ゴッド|heaven ヘブン|hell ヘル|king キング|queen クイーン|prince プリンス|
princess プリンセス|girl ガール|girls ガールズ|boy ボーイ|boys ボーイズ|man マン|men メン|woman ウーマン|
lady レディ|ladies レディース|gentleman ジェントルマン|child チャイルド|children チルドレン|kid キッド|kids キッズ|
mama ママ|papa パパ|mother マザー|father ファーザー|sister シスター|brother ブラザー|friend フレンド|
friends フレンズ|party パーティー|people ピープル|crazy クレイジー|wild ワイルド|free フリー|freedom フリーダム|
power パワー|strong ストロング|beautiful ビューティフル|pretty プリティー|cute キュート|sweet スウィート|
sweetie スウィーティー|honey ハニー|sugar シュガー|candy キャンディ|chocolate チョコレート|coffee コーヒー|
tea ティー|milk ミルク|magic マジック|magical マジカル|miracle ミラクル|fantasy ファンタジー|future フューチャー|
past パスト|present プレゼント|chance チャンス|change チェンジ|challenge チャレンジ|shake シェイク|move ムーブ|
jump ジャンプ|hop ホップ|rock ロック|rock'n'roll ロックンロール|roll ロール|pop ポップ|jazz ジャズ|blues ブルース|
funk ファンク|hip ヒップ|disco ディスコ|radio ラジオ|stereo ステレオ|video ビデオ|game ゲーム|play プレイ|
player プレイヤー|number ナンバー|line ライン|phone フォン|call コール|message メッセージ|letter レター|word ワード|
words ワーズ|voice ボイス|noise ノイズ|silence サイレンス|silent サイレント|sound サウンド|sounds サウンズ|
loud ラウド|quiet クワイエット|slow スロー|slowly スローリー|fast ファスト|hard ハード|easy イージー|hot ホット|
cold コールド|cool クール|warm ウォーム|love ラブ|lover ラバー|lovers ラバーズ|lovely ラブリー|lovin' ラビン|
loving ラビング|loved ラブド|loves ラブズ|baby ベイビー|babe ベイブ|darling ダーリン|dear ディア|need ニード|
want ウォント|know ノウ|think シンク|see シー|look ルック|looking ルッキング|watch ウォッチ|say セイ|said セッド|
tell テル|talk トーク|ask アスク|hear ヒア|listen リッスン|wait ウェイト|waiting ウェイティング|walk ウォーク|
walking ウォーキング|sleep スリープ|wake ウェイク|turn ターン|keep キープ|try トライ|help ヘルプ|work ワーク|
job ジョブ|money マネー|new ニュー|old オールド|young ヤング|big ビッグ|little リトル|small スモール|long ロング|
short ショート|deep ディープ|far ファー|near ニア|next ネクスト|another アナザー|other アザー|same セイム|
different ディファレント|special スペシャル|super スーパー|ultra ウルトラ|fantastic ファンタスティック|
wonderful ワンダフル|wonder ワンダー|wonderland ワンダーランド|paradise パラダイス|universe ユニバース|
galaxy ギャラクシー|planet プラネット|space スペース|rocket ロケット|robot ロボット|diamond ダイヤモンド|
crystal クリスタル|mirror ミラー|glass グラス|neon ネオン|pocket ポケット|destiny デスティニー|energy エナジー|
emotion エモーション|emotional エモーショナル|passion パッション|revolution レボリューション|
generation ジェネレーション|imagination イマジネーション|situation シチュエーション|
communication コミュニケーション|celebration セレブレーション|vacation バケーション|illusion イリュージョン|
vision ビジョン|mission ミッション|through スルー|though ゾー|enough イナフ|tough タフ|thought ソート|bought ボート|
fight ファイト|fighter ファイター|sight サイト|flight フライト|knight ナイト|weight ウェイト|height ハイト|
daughter ドーター|caught コート|
"""

KATAKANA_OF = dict(entry.rsplit(" ", 1) for entry in _TEXT.replace("\n", "").split("|") if entry)
"""Word in small letters, with its apostrophes → katakana."""
