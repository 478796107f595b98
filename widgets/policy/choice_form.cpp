#include "widgets/policy/choice_form.h"

#include <QAbstractItemView>
#include <QComboBox>
#include <QCompleter>
#include <QFormLayout>
#include <QLabel>
#include <QLineEdit>
#include <QMouseEvent>
#include <QPainter>
#include <QPushButton>
#include <QRegularExpression>
#include <QStandardItemModel>
#include <QStyledItemDelegate>
#include <QToolButton>
#include <QToolTip>
#include <QVBoxLayout>
#include <algorithm>
#include <set>

namespace keepsight {
namespace {

constexpr int IdRole = Qt::UserRole, SearchRole = Qt::UserRole + 1, SummaryRole = Qt::UserRole + 2;
constexpr int SearchableFrom = 12; // entries: fewer are read at a glance
constexpr std::size_t LongForm = 5; // parameters: fewer are not worth folding

// "SnapKV, arXiv:2404.14469" with the identifier as a link.
QString paperHtml(const std::string& paper) {
    QString html = QString::fromStdString(paper).toHtmlEscaped();
    static const QRegularExpression arxiv(QStringLiteral("arXiv:([0-9]{4}\\.[0-9]{4,5})"));
    html.replace(arxiv, QStringLiteral("<a href=\"https://arxiv.org/abs/\\1\">arXiv:\\1</a>"));
    return html;
}

// The id, and its summary in the room that is left.
class ChoiceDelegate : public QStyledItemDelegate {
public:
    using QStyledItemDelegate::QStyledItemDelegate;
    void paint(QPainter* painter, const QStyleOptionViewItem& given, const QModelIndex& index) const override {
        QStyledItemDelegate::paint(painter, given, index);
        const QString summary = index.data(SummaryRole).toString();
        const int margin = 6, from = given.rect.left() + std::max(idWidth(given), given.fontMetrics.horizontalAdvance(index.data().toString()) + 3 * margin);
        const QRect room(from, given.rect.top(), given.rect.right() - from - margin, given.rect.height());
        if (summary.isEmpty() || room.width() < 40) return;
        const bool selected = given.state & QStyle::State_Selected, enabled = given.state & QStyle::State_Enabled;
        QColor color = given.palette.color(enabled ? QPalette::Active : QPalette::Disabled, selected ? QPalette::HighlightedText : QPalette::Text);
        if (enabled) color.setAlphaF(0.68F);
        painter->save();
        painter->setPen(color);
        painter->drawText(room, Qt::AlignVCenter | Qt::AlignLeft, given.fontMetrics.elidedText(summary, Qt::ElideRight, room.width()));
        painter->restore();
    }
    QSize sizeHint(const QStyleOptionViewItem& option, const QModelIndex& index) const override {
        const QSize size = QStyledItemDelegate::sizeHint(option, index);
        return {size.width(), std::max(size.height(), option.fontMetrics.height() + 6)};
    }

private:
    static int idWidth(const QStyleOptionViewItem& option) { return option.fontMetrics.averageCharWidth() * 24; }
};

// Looks for the typed text anywhere in id, aliases, summary and paper, and completes to the id.
class IdCompleter : public QCompleter {
public:
    using QCompleter::QCompleter;
    QString pathFromIndex(const QModelIndex& index) const override { return index.data(Qt::DisplayRole).toString(); }
};

} // namespace

ChoiceForm::ChoiceForm(std::vector<Choice> choices, const Words& words, int foldedFrom, QWidget* parent)
    : QWidget(parent), m_choices(std::move(choices)), m_words(words), m_foldedFrom(foldedFrom) {
    std::map<std::pair<std::string, std::string>, std::set<std::string>> papers;
    for (const Choice& choice : m_choices)
        for (const ParamInfo& param : choice.params)
            papers[{param.name, param.help}].insert(choice.paper.empty() ? choice.id : choice.paper);
    for (const auto& [param, of] : papers)
        m_shared[param] = static_cast<int>(of.size());

    auto* column = new QVBoxLayout(this);
    column->setContentsMargins(0, 0, 0, 0);
    column->setSpacing(4);
    makeChooser();
    auto* top = new QFormLayout;
    top->setFieldGrowthPolicy(QFormLayout::AllNonFixedFieldsGrow);
    m_chooserLabel = new QLabel(words.label);
    m_chooserLabel->setBuddy(m_chooser);
    top->addRow(m_chooserLabel, m_chooser);
    column->addLayout(top);

    m_summary = new QLabel;
    m_summary->setObjectName(QStringLiteral("summary"));
    m_summary->setWordWrap(true);
    m_summary->setTextFormat(Qt::RichText);
    m_summary->setOpenExternalLinks(true);
    m_summary->setTextInteractionFlags(Qt::TextBrowserInteraction);
    m_summary->setAccessibleName(words.about);
    column->addWidget(m_summary);
    m_body = new QWidget;
    column->addWidget(m_body);
    m_reset = new QPushButton(tr("&Reset to defaults"));
    m_reset->setObjectName(QStringLiteral("reset"));
    m_reset->setToolTip(tr("Sets every parameter to its default"));
    column->addWidget(m_reset, 0, Qt::AlignLeft);
    column->addStretch(1);
    connect(m_reset, &QPushButton::clicked, this, &ChoiceForm::resetToDefaults);
    if (!m_choices.empty()) m_id = m_choices.front().id;
    build();
}

void ChoiceForm::makeChooser() {
    m_chooser = new QComboBox;
    m_chooser->setObjectName(m_words.id);
    m_chooser->setAccessibleName(m_words.name);
    m_chooser->setSizeAdjustPolicy(QComboBox::AdjustToMinimumContentsLengthWithIcon);
    m_chooser->setMinimumContentsLength(6);
    guardWheel(m_chooser);
    for (const Choice& choice : m_choices) {
        const QString id = QString::fromStdString(choice.id), summary = QString::fromStdString(choice.summary), paper = QString::fromStdString(choice.paper);
        m_chooser->addItem(id, id);
        QStringList search{id, summary, choice.kind, paper};
        for (const std::string& alias : choice.aliases)
            search << QString::fromStdString(alias);
        const int at = m_chooser->count() - 1;
        m_chooser->setItemData(at, search.join(QLatin1Char(' ')), SearchRole);
        m_chooser->setItemData(at, summary, SummaryRole);
    }
    m_chooser->setItemDelegate(new ChoiceDelegate(m_chooser));
    m_chooser->view()->setMinimumWidth(m_chooser->fontMetrics().averageCharWidth() * 74);
    m_chooser->view()->setTextElideMode(Qt::ElideRight);
    if (m_chooser->count() >= SearchableFrom) makeSearchable();
    connect(m_chooser, &QComboBox::currentIndexChanged, this, &ChoiceForm::chosen);
    showRefusals(); // tool tips
}

void ChoiceForm::makeSearchable() {
    m_chooser->setEditable(true);
    m_chooser->setInsertPolicy(QComboBox::NoInsert);
    m_chooser->setMaxVisibleItems(16);
    QLineEdit* line = m_chooser->lineEdit();
    line->setPlaceholderText(m_words.search);
    line->setAccessibleName(m_words.name);
    line->installEventFilter(this);
    auto* completer = new IdCompleter(m_chooser);
    completer->setModel(m_chooser->model());
    completer->setCompletionRole(SearchRole);
    completer->setCaseSensitivity(Qt::CaseInsensitive);
    completer->setFilterMode(Qt::MatchContains);
    completer->setCompletionMode(QCompleter::PopupCompletion);
    completer->setMaxVisibleItems(16);
    completer->popup()->setItemDelegate(new ChoiceDelegate(completer));
    completer->popup()->setMinimumWidth(m_chooser->view()->minimumWidth());
    m_chooser->setCompleter(completer);
    connect(line, &QLineEdit::returnPressed, this, [this, completer, line] { // the first that fits
        if (indexOf(line->text()) >= 0 || line->text().isEmpty()) return;
        completer->setCompletionPrefix(line->text());
        for (int row = 0; completer->setCurrentRow(row); ++row)
            if (completer->currentIndex().flags() & Qt::ItemIsEnabled) {
                line->setText(completer->currentCompletion());
                return;
            }
    });
    connect(line, &QLineEdit::editingFinished, this, [this, line] {
        const int index = indexOf(line->text());
        if (index >= 0) m_chooser->setCurrentIndex(index);
        if (line->text() != m_chooser->itemText(m_chooser->currentIndex())) line->setText(m_chooser->itemText(m_chooser->currentIndex()));
    });
}

// A click into the name begins a search: what is typed replaces it.
bool ChoiceForm::eventFilter(QObject* object, QEvent* event) {
    if (object == m_chooser->lineEdit()) {
        if (event->type() == QEvent::MouseButtonPress) m_selectOnRelease = !m_chooser->hasFocus();
        if (event->type() == QEvent::MouseButtonRelease && std::exchange(m_selectOnRelease, false))
            QMetaObject::invokeMethod(m_chooser->lineEdit(), &QLineEdit::selectAll, Qt::QueuedConnection);
    }
    return QWidget::eventFilter(object, event);
}

int ChoiceForm::indexOf(const QString& idOrAlias) const {
    const QString wanted = idOrAlias.trimmed();
    int index = m_chooser->findData(wanted, IdRole, Qt::MatchFixedString | Qt::MatchCaseSensitive);
    if (index < 0) index = m_chooser->findData(wanted, IdRole, Qt::MatchFixedString); // kvcV is not KVCV, but what else should that mean
    for (std::size_t i = 0; index < 0 && i < m_choices.size(); ++i)
        if (std::ranges::find(m_choices[i].aliases, wanted.toStdString()) != m_choices[i].aliases.end()) index = static_cast<int>(i);
    return index;
}

QComboBox* ChoiceForm::takeChooser() {
    m_chooserLabel->hide();
    m_chooser->setParent(nullptr);
    return m_chooser;
}

const Choice* ChoiceForm::choice() const {
    const auto found = std::ranges::find(m_choices, m_id, &Choice::id);
    return found == m_choices.end() ? nullptr : &*found;
}

bool ChoiceForm::isShared(const ParamInfo& param) const {
    const auto found = m_shared.find({param.name, param.help});
    return m_foldedFrom > 0 && found != m_shared.end() && found->second >= m_foldedFrom;
}

bool ChoiceForm::same(const std::vector<ParamInfo>& params, const ParamTexts& a, const ParamTexts& b) {
    return std::ranges::all_of(params, [&](const ParamInfo& param) {
        const auto of = [&param](const ParamTexts& from) {
            const auto found = from.find(param.name);
            return found == from.end() ? param.initial : found->second;
        };
        return of(a) == of(b);
    });
}

void ChoiceForm::setRefusals(std::function<QString(const std::string&)> refusal) {
    m_refusal = std::move(refusal);
    showRefusals();
}

void ChoiceForm::showRefusals() {
    auto* model = qobject_cast<QStandardItemModel*>(m_chooser->model());
    for (std::size_t i = 0; model && i < m_choices.size(); ++i) {
        const Choice& choice = m_choices[i];
        const QString why = m_refusal ? m_refusal(choice.id) : QString();
        QString tip = QString::fromStdString(choice.summary);
        if (!choice.paper.empty()) tip += QLatin1Char('\n') + QString::fromStdString(choice.paper);
        QStandardItem* item = model->item(static_cast<int>(i));
        if (item->isEnabled() != why.isEmpty()) item->setEnabled(why.isEmpty());
        if (const QString text = why.isEmpty() ? tip : why; item->toolTip() != text) item->setToolTip(text);
    }
}

void ChoiceForm::choose(const std::string& id, const ParamTexts& params) {
    std::string known = id;
    for (const Choice& choice : m_choices)
        if (std::ranges::find(choice.aliases, id) != choice.aliases.end()) known = choice.id;
    if (known == m_id && params == m_params) return;
    m_id = known;
    m_params = params;
    build();
}

void ChoiceForm::chosen(int index) {
    if (m_building || index < 0) return;
    const std::string id = m_chooser->itemData(index).toString().toStdString();
    if (id == m_id) return;
    if (const QString why = m_refusal ? m_refusal(id) : QString(); !why.isEmpty()) { // typed in full: lists do not offer it
        m_building = true;
        m_chooser->setCurrentIndex(m_chooser->findData(QString::fromStdString(m_id)));
        m_building = false;
        QToolTip::showText(m_chooser->mapToGlobal(QPoint(0, m_chooser->height())), why, m_chooser);
        return;
    }
    m_id = id;
    m_params.clear();
    build();
    Q_EMIT changed();
}

ParamTexts ChoiceForm::read() const {
    if (!choice() || !m_made) return m_params;
    ParamTexts out;
    for (const Row& row : m_rows)
        if (!row.editor.isDefault()) out[row.editor.param.name] = row.editor.value();
    return out;
}

void ChoiceForm::resetToDefaults() {
    if (!m_made) makeEditors();
    if (std::ranges::all_of(m_rows, [](const Row& row) { return row.editor.isDefault(); })) return;
    m_building = true;
    for (Row& row : m_rows)
        row.editor.show(row.editor.param.initial);
    m_building = false;
    edited();
}

void ChoiceForm::build() {
    m_building = true;
    const QString id = QString::fromStdString(m_id);
    int index = m_chooser->findData(id);
    if (index < 0) {
        m_chooser->addItem(tr("%1 (unknown)").arg(id), id);
        index = m_chooser->count() - 1;
    }
    m_chooser->setCurrentIndex(index);
    m_building = false;
    if (const Choice* of = choice()) { // what could not be shown is not meant
        m_chooser->setToolTip(QString::fromStdString(of->summary));
        ParamTexts usable;
        for (const ParamInfo& param : of->params)
            if (const auto given = m_params.find(param.name); given != m_params.end())
                if (std::string text = usableText(param, given->second); text != param.initial) usable[param.name] = std::move(text);
        m_params = std::move(usable);
    }
    m_made = false;
    if (!m_lazy || isVisible()) makeEditors();
}

void ChoiceForm::showEvent(QShowEvent* event) {
    if (!m_made) makeEditors();
    QWidget::showEvent(event);
}

void ChoiceForm::makeEditors() {
    m_building = m_made = true;
    m_rows.clear();
    m_more = nullptr;
    // Replaced, not emptied: a form layout keeps gaps where rows were removed.
    auto* old = m_body;
    m_body = new QWidget;
    auto* column = new QVBoxLayout(m_body);
    column->setContentsMargins(0, 0, 0, 0);
    column->setSpacing(4);
    const auto addForm = [column] {
        auto* holder = new QWidget;
        auto* form = new QFormLayout(holder);
        form->setContentsMargins(0, 0, 0, 0);
        form->setVerticalSpacing(4);
        form->setFieldGrowthPolicy(QFormLayout::AllNonFixedFieldsGrow);
        column->addWidget(holder);
        return form;
    };
    QFormLayout* form = addForm();
    const Choice* of = choice();
    if (of) {
        QStringList about{QString::fromStdString(of->summary).toHtmlEscaped()};
        if (!of->kind.isEmpty()) about << of->kind;
        QString html = about.join(QLatin1Char(' '));
        if (!of->paper.empty()) html += QStringLiteral("<br>") + paperHtml(of->paper);
        m_summary->setText(html);
        for (const ParamInfo& param : of->params) {
            Row row;
            row.editor = makeParamEditor(param, this, [this] { edited(); });
            const auto given = m_params.find(param.name);
            row.editor.show(given == m_params.end() ? param.initial : given->second);
            row.folded = of->params.size() >= LongForm && isShared(param) && row.editor.isDefault();
            row.label = new QLabel(QString::fromStdString(param.name));
            row.label->setBuddy(row.editor.field);
            row.label->setToolTip(paramHelp(param));
            if (!row.folded) form->addRow(row.label, row.editor.row);
            m_rows.push_back(std::move(row));
        }
        if (std::ranges::any_of(m_rows, &Row::folded)) {
            m_more = new QToolButton;
            m_more->setObjectName(QStringLiteral("more"));
            m_more->setAutoRaise(true);
            m_more->setCheckable(true);
            m_more->setToolButtonStyle(Qt::ToolButtonTextBesideIcon);
            m_more->setToolTip(tr("Parameters that many of them share"));
            column->addWidget(m_more, 0, Qt::AlignLeft);
            QFormLayout* folded = addForm();
            for (Row& row : m_rows)
                if (row.folded) folded->addRow(row.label, row.editor.row);
            const auto open = [this, holder = folded->parentWidget()](bool on) {
                m_foldOpen = on;
                m_more->setArrowType(on ? Qt::DownArrow : Qt::RightArrow);
                holder->setVisible(on);
            };
            m_more->setChecked(m_foldOpen);
            open(m_foldOpen);
            connect(m_more, &QToolButton::toggled, m_body, open);
        }
    } else {
        m_summary->setText(m_words.unknown);
    }
    if (m_rows.empty() && of) form->addRow(new QLabel(m_words.none));
    if (form->rowCount() == 0) form->parentWidget()->hide();
    delete layout()->replaceWidget(old, m_body);
    m_body->show();
    old->setParent(nullptr);
    old->deleteLater();
    QWidget* before = m_chooser;
    const auto follow = [&before](QWidget* next) {
        if (before->window() == next->window()) QWidget::setTabOrder(before, next);
        before = next;
    };
    for (const bool folded : {false, true}) {
        if (folded && m_more) follow(m_more);
        for (const Row& row : m_rows)
            if (row.folded == folded) follow(row.editor.field);
    }
    follow(m_reset);
    m_building = false;
    markChanged();
}

void ChoiceForm::edited() {
    if (m_building) return;
    markChanged();
    ParamTexts now = read();
    if (now == m_params) return;
    m_params = std::move(now);
    Q_EMIT changed();
}

// Names of changed parameters are bold; the button is live only when there is something to reset.
void ChoiceForm::markChanged() {
    const auto embolden = [](QWidget* widget, bool bold) {
        QFont font = widget->font();
        if (font.bold() == bold) return;
        font.setBold(bold);
        widget->setFont(font);
    };
    bool any = false;
    int folded = 0, foldedChanged = 0;
    for (const Row& row : m_rows) {
        const bool changed = !row.editor.isDefault();
        embolden(row.label, changed);
        any = any || changed;
        folded += row.folded;
        foldedChanged += row.folded && changed;
    }
    if (m_more) {
        m_more->setText(foldedChanged ? tr("More (%1, %2 changed)").arg(folded).arg(foldedChanged) : tr("More (%1)").arg(folded));
        embolden(m_more, foldedChanged > 0);
    }
    m_reset->setEnabled(any);
    m_reset->setVisible(!m_rows.empty());
}

} // namespace keepsight
